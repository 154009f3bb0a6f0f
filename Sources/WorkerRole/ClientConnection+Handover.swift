import Loop
import Platform

extension ClientConnection {
    enum GiveAway { case given, busy, refused }

    /// Sends the connection to another worker if nothing of it is here: no request begun, nothing unsent. What the client has sent and
    /// nobody has read travels with the socket. Our copy is closed without a word to the client, who has one connection all the while.
    func giveAway(over socket: Int32) -> GiveAway {
        guard isIdle, bufferedBytes == 0, !isHalfClosed, !awaitsProxyHeader else { return .busy }
        var isUnix = false
        if case .unix(_)? = stream.peer?.host { isUnix = true }
        guard HandoverSocket.give(stream.descriptor, isUnix: isUnix, client: proxiedClient, over: socket) else { return .refused }
        close()
        return .given
    }
}
