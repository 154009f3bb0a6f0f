import ArgumentParser
import JSONWire
import Store

/// The tokens of a Codex login, snake or camel case; unknown members are ignored.
struct AuthFile {
    var accessToken: String
    var refreshToken: String
    var idToken: String
    var accountID: String?
    var email: String?

    /// Tokens as an issuer gives them.
    init(access: String, refresh: String, id: String) {
        (accessToken, refreshToken, idToken) = (access, refresh, id)
        (email, accountID) = LoginIdentity.facts(ofToken: id)
    }

    init(_ bytes: [UInt8], file: String) throws {
        func refuse(_ why: String) -> ExitCode {
            complain("\(file) is no auth.json of a ChatGPT login: \(why)")
            return ExitCode(1)
        }
        guard !bytes.contains(0) else { throw refuse("it is not UTF-8; save it as UTF-8") }
        // Editors put a byte order mark in front.
        let text = bytes.starts(with: [0xEF, 0xBB, 0xBF]) ? Array(bytes.dropFirst(3)) : bytes
        let document: JSONValue
        do throws(JSONError) { document = try JSONValue(parsing: text.span.bytes) } catch {
            let line = 1 + text.prefix(error.offset).count { $0 == 0x0A }
            // A no-break space or a typographic quote looks like what it replaces.
            let isOdd = error.offset < text.count && text[error.offset] >= 0x80
            throw refuse("\(error.reason) in line \(line)\(isOdd ? ", at a character that only looks like a space or a quote" : "")")
        }
        guard let tokens = document["tokens"], tokens.objectValue != nil else {
            throw refuse("\"tokens\" is missing (log in with: codex login; an API key is added with: codex-lb accounts add)")
        }
        func token(_ snake: String, _ camel: String) throws -> String {
            guard let text = (tokens[snake] ?? tokens[camel])?.stringValue, !text.isEmpty else {
                throw refuse("\"tokens.\(snake)\" is missing")
            }
            guard text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
                throw refuse("\"tokens.\(snake)\" has characters that no token has (spaces, line breaks or not ASCII)")
            }
            return text
        }
        accessToken = try token("access_token", "accessToken")
        refreshToken = try token("refresh_token", "refreshToken")
        idToken = try token("id_token", "idToken")
        let facts = LoginIdentity.facts(ofToken: idToken)
        email = facts.email
        let told = (tokens["account_id"] ?? tokens["accountId"])?.stringValue
        accountID = told.flatMap { $0.isEmpty ? nil : $0 } ?? facts.workspace
    }
}
