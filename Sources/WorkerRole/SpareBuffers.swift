import Vocabulary

/// Empty buffers with room, for whoever needs one for a moment: a connection whose answer has been sent keeps none.
struct SpareBuffers {
    private var buffers: [[UInt8]] = []

    /// Gives room to a buffer that has none.
    mutating func take(_ buffer: inout [UInt8]) {
        if buffer.capacity == 0, let spare = buffers.popLast() { buffer = spare }
    }

    /// Takes the room of an empty buffer.
    mutating func give(_ buffer: inout [UInt8]) {
        precondition(buffer.isEmpty)
        guard buffer.capacity > 0 else { return }
        if buffers.count < Limits.spareBuffersMax, buffer.capacity <= Limits.scratchBytesMax {
            var empty: [UInt8] = []
            swap(&buffer, &empty)
            buffers.append(empty)
        } else {
            buffer = []
        }
    }
}
