import Admission
import Diagnostics
import Exchange
import HTTPWire
import Logging
import Loop
import Platform
import Vocabulary

/// What becomes of a request by its head alone.
enum Reception {
    /// It is taken; its body, if it has one, is wanted.
    case taken(ClientRequest)
    /// A question about what may be asked.
    case options(id: String)
    /// Its answer, with further fields.
    case refused(ProxyError, id: String, fields: [(String, String)])
}

extension Worker {
    /// Looks at a head in the order in which a refusal says the least to those whom nothing is to be told: the page it comes from, the path,
    /// the method, the key, the length, the room.
    func receive(_ head: RequestHead, isLocalPeer: Bool) -> (reception: Reception, pageOrigin: String?) {
        let time = Clock.wall
        let recordID = makeID(time)
        let id = Self.requestID(head.fields) ?? "req_" + recordID.description
        var pageOrigin: String?
        func refused(_ error: ProxyError, _ fields: [(String, String)] = [], isAdmission: Bool = false) -> (Reception, String?) {
            if isAdmission { scoreboard.add(.admissionRefused, worker: slot) }
            log.refused(error.code, ["request_id": "\(id)", "method": "\(head.method.text)", "status": "\(error.status)"])
            return (.refused(error, id: id, fields: fields), pageOrigin)
        }
        func invalid(_ status: Int, _ code: String, _ message: String) -> ProxyError {
            ProxyError(status: status, code: code, type: "invalid_request_error", message: message, origin: .downstream)
        }
        switch originPolicy.verdict(head.fields) {
        case .pass: break
        case .allowed(let origin): pageOrigin = origin
        case .refused: return refused(OriginPolicy.refusal, isAdmission: true)
        }
        if head.method == .options { return (.options(id: id), pageOrigin) }
        guard let route = Route(path: head.path) else {
            return refused(invalid(404, "not_found", "No such path: \(head.method.text) \(head.path)"))
        }
        guard head.method == route.method || (head.method == .head && route.method == .get) else {
            let text = "\(route.rawValue) takes \(route.method.text), not \(head.method.text)"
            return refused(invalid(405, "method_not_allowed", text), [("Allow", route.method.text)])
        }
        var key: ClientKey?
        if route.isProxied {
            switch gate.admit(head, isLocalPeer: isLocalPeer) {
            case .success(let found): key = found
            case .failure(let error):
                return refused(error, error.status == 401 ? [("WWW-Authenticate", "Bearer")] : [], isAdmission: true)
            }
        }
        if case .length(let count) = head.framing, count > route.bodyBytesMax {
            return refused(ClientRequest.tooLarge(route.bodyBytesMax))
        }
        if head.framing != .none, !memory.hasRoom(0, for: .request) {
            return refused(MemoryBudget.overloaded("no further request body is taken"), isAdmission: true)
        }
        let request = ClientRequest(head, route, recordID: recordID, id: id, time: time, start: loop.iterationTime, key: key, memory)
        return (.taken(request), pageOrigin)
    }

    /// The client's own, where it is one that can stand in a head and a log.
    private static func requestID(_ fields: HeaderFields) -> String? {
        guard let id = fields.first(.requestID), !id.isEmpty, id.utf8.count <= Limits.requestIDBytesMax,
            id.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F })
        else { return nil }
        return id
    }
}
