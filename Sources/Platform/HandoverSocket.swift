internal import CPlatform
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// Where idle client connections go from a worker that leaves to those that serve: one pair of sockets for the whole instance, made by the
/// supervisor, which keeps both ends open. Every worker inherits both; whoever serves takes from it, whoever leaves puts into it.
///
/// A message is one byte, `t` for TCP or `u` for a Unix-domain socket, then the client's address if a PROXY header told it, and the descriptor. What waits in it is lost with nobody: the
/// kernel keeps the connection open, with what the client sends meanwhile, until somebody takes it.
public enum HandoverSocket {
    public static func pair() throws(SystemError) -> (taking: Int32, giving: Int32) {
        var pair: [Int32] = [-1, -1]
        let code = codexlb_packet_pair(&pair)
        if code < 0 { throw SystemError(-code, "socketpair") }
        return (pair[0], pair[1])
    }

    /// Sends a copy; the caller's stays open. False: not now (nobody takes, or too many are on their way: ETOOMANYREFS of unix(7)).
    public static func give(_ descriptor: Int32, isUnix: Bool, client: IPAddress? = nil, over socket: Int32) -> Bool {
        let message = [UInt8(ascii: isUnix ? "u" : "t")] + Array((client?.description ?? "").utf8)
        return codexlb_send_descriptor(socket, descriptor, message, message.count) == 0
    }

    /// The next one; nil: none waits.
    public static func take(from socket: Int32) -> (descriptor: Int32, isUnix: Bool, client: IPAddress?)? {
        while true {
            var message = [UInt8](repeating: 0, count: 64)
            var count = message.count
            let fd = codexlb_receive_descriptor(socket, &message, &count)
            if fd >= 0 {
                return (fd, message[0] == UInt8(ascii: "u"), IPAddress(String(decoding: message[1..<max(1, count)], as: UTF8.self)))
            }
            if fd != -EBADMSG { return nil }
        }
    }
}
