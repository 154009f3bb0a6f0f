internal import CUV

/// Tells when a descriptor that a C library owns can be read or written. It must be closed before the library closes the descriptor.
public final class DescriptorPoll {
    public struct Events: OptionSet, Sendable {
        public let rawValue: Int
        public init(rawValue: Int) { self.rawValue = rawValue }
        public static let readable = Events(rawValue: 1)
        public static let writable = Events(rawValue: 2)
    }

    private let handle = UnsafeMutablePointer<uv_poll_t>.allocate(capacity: 1)
    private var happened: ((Events) -> Void)?
    private var watched: Events = []
    private var isClosed = false

    public init(_ loop: EventLoop, _ descriptor: Int32, _ happened: @escaping (Events) -> Void) throws(LoopError) {
        let code = uv_poll_init(loop.uv, handle, descriptor)
        guard code == 0 else {
            handle.deallocate()
            throw LoopError(code: code)
        }
        self.happened = happened
        handle.pointee.data = Unmanaged.passRetained(self).toOpaque()
    }

    /// What to look for from now on; an error of the descriptor counts as both.
    public func watch(_ events: Events) {
        guard !isClosed, events != watched else { return }
        watched = events
        var flags: Int32 = 0
        if events.contains(.readable) { flags |= Int32(UV_READABLE.rawValue) }
        if events.contains(.writable) { flags |= Int32(UV_WRITABLE.rawValue) }
        uv_poll_start(handle, flags) { handle, status, flags in
            let me = Unmanaged<DescriptorPoll>.fromOpaque(handle!.pointee.data).takeUnretainedValue()
            var events: Events = status < 0 ? [.readable, .writable] : []
            if flags & Int32(UV_READABLE.rawValue) != 0 { events.insert(.readable) }
            if flags & Int32(UV_WRITABLE.rawValue) != 0 { events.insert(.writable) }
            me.happened?(events)
        }
    }

    public func close() {
        guard !isClosed else { return }
        isClosed = true
        happened = nil
        UnsafeMutableRawPointer(handle).withMemoryRebound(to: uv_handle_t.self, capacity: 1) { h in
            uv_close(h) { raw in
                let me = Unmanaged<DescriptorPoll>.fromOpaque(raw!.pointee.data)
                me.takeUnretainedValue().handle.deallocate()
                me.release()
            }
        }
    }
}
