import Foundation

#if canImport(Glibc)
    import Glibc
#endif

/// A whole answer.
public struct Answer: Sendable {
    public var status: Int
    /// Names in lower case, in order.
    public var headers: [(name: String, value: String)]
    public var body: [UInt8]
    /// False when the connection ended before the body did.
    public var isWhole = true

    public var text: String { String(decoding: body, as: UTF8.self) }
    public func header(_ name: String) -> String? { headers.first { $0.name == name.lowercased() }?.value }
    public var json: [String: Any] { (try? JSONSerialization.jsonObject(with: Data(body)) as? [String: Any]) ?? [:] }  // no JSON: empty
    public var error: [String: Any] { json["error"] as? [String: Any] ?? [:] }
    public var errorCode: String? { error["code"] as? String }
    /// Events of the body, comments left out.
    public var events: [ServerEvent] { ServerEvent.parse(text) }
}

public struct ServerEvent: Sendable {
    public var name: String?
    public var data: String
    public var json: [String: Any] { (try? JSONSerialization.jsonObject(with: Data(data.utf8)) as? [String: Any]) ?? [:] }  // no JSON: empty
    public var type: String { json["type"] as? String ?? data }

    public static func parse(_ text: String) -> [ServerEvent] {
        text.components(separatedBy: "\n\n").compactMap { block in
            var event = ServerEvent(name: nil, data: "")
            var hasData = false
            for line in block.split(separator: "\n") {
                if line.hasPrefix("event: ") { event.name = String(line.dropFirst(7)) }
                if line.hasPrefix("data: ") {
                    event.data += line.dropFirst(6)
                    hasData = true
                }
            }
            return hasData ? event : nil
        }
    }
}

/// A client over a raw socket that does only what it is told. Each wait has a deadline.
public final class HTTPConnection {
    private var fd: Int32
    /// Bytes received and not yet read by the test.
    public private(set) var buffer: [UInt8] = []
    private var chunked = false
    private var remaining: Int?
    private var chunkLeft = 0
    private var bodyEnded = false

    public init(_ address: String, receiveBuffer: Int32? = nil) throws {
        let parts = address.split(separator: ":")
        guard parts.count == 2, let port = UInt16(parts[1]) else { throw HarnessError("address \(address)") }
        fd = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard fd >= 0 else { throw HarnessError("socket: \(String(cString: strerror(errno)))") }
        if var size = receiveBuffer { setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, 4) }
        var one: Int32 = 1
        setsockopt(fd, Int32(IPPROTO_TCP), TCP_NODELAY, &one, 4)
        var a = sockaddr_in()
        a.sin_family = sa_family_t(AF_INET)
        a.sin_port = port.bigEndian
        inet_pton(AF_INET, String(parts[0]), &a.sin_addr)
        let code = withUnsafePointer(to: &a) { p in
            p.withMemoryRebound(to: sockaddr.self, capacity: 1) { Glibc.connect(fd, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
        }
        guard code == 0 else {
            let text = String(cString: strerror(errno))
            Glibc.close(fd)
            fd = -1
            throw HarnessError("connecting to \(address): \(text)")
        }
    }

    init(descriptor: Int32) { fd = descriptor }

    /// Waits until so many bytes have been received in all.
    public func waitBytes(_ count: Int, seconds: Double = 10) throws -> Bool {
        while buffer.count < count { guard try receive(seconds) else { return false } }
        return true
    }

    /// Over a Unix-domain socket.
    public init(unix path: String) throws {
        fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var a = sockaddr_un()
        a.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &a.sun_path) { $0.copyBytes(from: path.utf8) }
        let code = withUnsafePointer(to: &a) { p in
            p.withMemoryRebound(to: sockaddr.self, capacity: 1) { Glibc.connect(fd, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
        }
        guard code == 0 else { throw HarnessError("connecting to \(path): \(String(cString: strerror(errno)))") }
    }

    deinit { close() }

    public func close() {
        if fd >= 0 { Glibc.close(fd) }
        fd = -1
    }

    /// Closes with RST.
    public func reset() {
        var linger = linger(l_onoff: 1, l_linger: 0)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout.size(ofValue: linger)))
        close()
    }

    /// Our end; the answer can still be read.
    public func shutdownWrite() { Glibc.shutdown(fd, Int32(SHUT_WR)) }

    // MARK: Sending

    /// All of the bytes; an error when the other side takes none for `seconds` or has closed.
    public func send(_ bytes: [UInt8], seconds: Double = 20) throws {
        var sent = 0
        try bytes.withUnsafeBytes { raw in
            while sent < raw.count {
                let n = Glibc.send(fd, raw.baseAddress! + sent, raw.count - sent, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
                if n > 0 {
                    sent += n
                } else if errno == EAGAIN {
                    guard wait(Int16(POLLOUT), seconds) else { throw HarnessError("the server takes no bytes") }
                } else if errno != EINTR {
                    throw HarnessError("send: \(String(cString: strerror(errno)))")
                }
            }
        }
    }

    public func send(_ text: String) throws { try send(Array(text.utf8)) }

    public static func head(_ method: String, _ path: String, bodyCount: Int?, headers: [(String, String)] = []) -> String {
        var head = "\(method) \(path) HTTP/1.1\r\n"
        if !headers.contains(where: { $0.0.lowercased() == "host" }) { head += "Host: localhost\r\n" }
        for (name, value) in headers { head += "\(name): \(value)\r\n" }
        if let bodyCount { head += "Content-Type: application/json\r\nContent-Length: \(bodyCount)\r\n" }
        return head + "\r\n"
    }

    public func send(_ method: String, _ path: String, body: [UInt8]?, headers: [(String, String)] = []) throws {
        try send(Array(Self.head(method, path, bodyCount: body?.count, headers: headers).utf8) + (body ?? []))
    }

    public func post(_ path: String, _ body: String, headers: [(String, String)] = []) throws {
        try send("POST", path, body: Array(body.utf8), headers: headers)
    }

    // MARK: Receiving

    private func wait(_ events: Int16, _ seconds: Double) -> Bool {
        var p = pollfd(fd: fd, events: events, revents: 0)
        return poll(&p, 1, Int32(seconds * 1000)) > 0
    }

    /// Reads once; false at the other side's end. Throws when nothing comes in time or the connection was reset.
    @discardableResult
    public func receive(_ seconds: Double = 10, bytesMax: Int = 64 * 1024) throws -> Bool {
        guard wait(Int16(POLLIN), seconds) else { throw HarnessError("nothing came for \(seconds) s; so far: \(String(decoding: buffer.prefix(2000), as: UTF8.self))") }
        var chunk = [UInt8](repeating: 0, count: bytesMax)
        let n = recv(fd, &chunk, chunk.count, 0)
        if n < 0 { throw HarnessError("recv: \(String(cString: strerror(errno)))") }
        buffer += chunk[..<n]
        return n > 0
    }

    /// Whether nothing at all comes for so long: for what must not happen.
    public func isSilent(_ seconds: Double) -> Bool { buffer.isEmpty && !wait(Int16(POLLIN), seconds) }

    /// Waits for the other side's end or reset, dropping what comes.
    public func waitEnd(_ seconds: Double = 10) -> Bool {
        let end = Date(timeIntervalSinceNow: seconds)
        while Date() < end {
            guard wait(Int16(POLLIN), max(0.001, end.timeIntervalSinceNow)) else { return false }
            var chunk = [UInt8](repeating: 0, count: 64 * 1024)
            if recv(fd, &chunk, chunk.count, 0) <= 0 { return true }
        }
        return false
    }

    /// The next head: its status and fields. 1xx heads are answers too.
    public func head(_ seconds: Double = 10) throws -> Answer {
        let mark = Array("\r\n\r\n".utf8)
        var end: Int?
        while true {
            end = buffer.firstRange(of: mark)?.upperBound
            if end != nil { break }
            guard try receive(seconds) else { throw HarnessError("the connection ended within the head: \(String(decoding: buffer, as: UTF8.self))") }
        }
        let lines = String(decoding: buffer[..<end!], as: UTF8.self).components(separatedBy: "\r\n").filter { !$0.isEmpty }
        buffer.removeFirst(end!)
        let status = Int(lines[0].split(separator: " ").dropFirst().first ?? "") ?? 0
        let headers = lines.dropFirst().map { line in
            let colon = line.firstIndex(of: ":") ?? line.endIndex
            return (name: line[..<colon].lowercased(), value: line[colon...].dropFirst().trimmingCharacters(in: .whitespaces))
        }
        let answer = Answer(status: status, headers: headers, body: [])
        chunked = answer.header("transfer-encoding")?.lowercased() == "chunked"
        remaining = answer.header("content-length").flatMap { Int($0) }
        if status < 200 || status == 204 || status == 304 { remaining = 0 }
        chunkLeft = 0
        bodyEnded = false
        return answer
    }

    /// The next piece of the body; nil at its end. Throws when the connection ends within it.
    public func piece(_ seconds: Double = 10) throws -> [UInt8]? {
        if bodyEnded { return nil }
        if chunked {
            if chunkLeft == 0 {
                let line = try line(seconds)
                guard let size = Int(line.prefix { $0 != ";" }, radix: 16) else { throw HarnessError("chunk size \"\(line)\"") }
                if size == 0 {
                    while try !self.line(seconds).isEmpty {}
                    bodyEnded = true
                    return nil
                }
                chunkLeft = size
            }
            while buffer.isEmpty { guard try receive(seconds) else { throw HarnessError("the connection ended within a chunk") } }
            let piece = Array(buffer.prefix(chunkLeft))
            buffer.removeFirst(piece.count)
            chunkLeft -= piece.count
            if chunkLeft == 0, try !line(seconds).isEmpty { throw HarnessError("chunk longer than its size") }
            return piece
        }
        if remaining == 0 {
            bodyEnded = true
            return nil
        }
        while buffer.isEmpty {
            guard try receive(seconds) else {
                if remaining == nil {
                    bodyEnded = true
                    return nil
                }
                throw HarnessError("the connection ended within the body")
            }
        }
        let piece = Array(buffer.prefix(remaining ?? buffer.count))
        buffer.removeFirst(piece.count)
        remaining = remaining.map { $0 - piece.count }
        return piece
    }

    private func line(_ seconds: Double) throws -> String {
        while true {
            if let end = buffer.firstIndex(of: 10) {
                let line = String(decoding: buffer[..<end].filter { $0 != 13 }, as: UTF8.self)
                buffer.removeFirst(end + 1)
                return line
            }
            guard try receive(seconds) else { throw HarnessError("the connection ended within a line") }
        }
    }

    /// The rest of the body.
    public func body(_ seconds: Double = 20) throws -> [UInt8] {
        var out: [UInt8] = []
        while let piece = try piece(seconds) { out += piece }
        return out
    }

    /// A whole answer, 1xx heads skipped.
    public func answer(_ seconds: Double = 20) throws -> Answer {
        var answer = try head(seconds)
        while answer.status < 200 { answer = try head(seconds) }
        do {
            while let piece = try piece(seconds) { answer.body += piece }
        } catch {
            guard "\(error)".contains("ended within") || "\(error)".contains("reset") else { throw error }
            answer.isWhole = false
        }
        return answer
    }

    private var eventText: [UInt8] = []

    /// The next block of the event stream, comments too (`: keepalive`); nil at the end of the body.
    public func block(_ seconds: Double = 10) throws -> String? {
        let mark = Array("\n\n".utf8)
        while true {
            if let range = eventText.firstRange(of: mark) {
                let text = String(decoding: eventText[..<range.lowerBound], as: UTF8.self)
                eventText.removeFirst(range.upperBound)
                return text
            }
            guard let piece = try piece(seconds) else { return nil }
            eventText += piece
        }
    }

    /// The next event, comments skipped.
    public func event(_ seconds: Double = 10) throws -> ServerEvent? {
        while let text = try block(seconds) {
            if let event = ServerEvent.parse(text).first { return event }
        }
        return nil
    }
}

/// A listening socket to pass on, as systemd does.
public final class PassedListener {
    public let descriptor: Int32
    public let port: UInt16

    public init() throws {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var a = sockaddr_in()
        a.sin_family = sa_family_t(AF_INET)
        inet_pton(AF_INET, "127.0.0.1", &a.sin_addr)
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let descriptor = descriptor
        let isBound = withUnsafeMutablePointer(to: &a) { p in
            p.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, size) == 0 && listen(descriptor, 128) == 0 && getsockname(descriptor, $0, &size) == 0
            }
        }
        guard isBound else { throw HarnessError("listening: \(String(cString: strerror(errno)))") }
        port = UInt16(bigEndian: a.sin_port)
    }

    deinit { Glibc.close(descriptor) }

    /// The next connection, to be used from the server's side.
    public func accept(_ seconds: Double = 10) throws -> HTTPConnection {
        var p = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&p, 1, Int32(seconds * 1000)) > 0 else { throw HarnessError("nobody connects") }
        let fd = Glibc.accept(descriptor, nil, nil)
        guard fd >= 0 else { throw HarnessError("accept: \(String(cString: strerror(errno)))") }
        return HTTPConnection(descriptor: fd)
    }
}
