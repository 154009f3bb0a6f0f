import ArgumentParser
import Exchange
import HTTPWire
import JSONWire
import Store
import Upstream
import Vocabulary

extension Accounts {
    struct Test: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Ask an account's upstream something that costs nothing, and say what works.",
            discussion: """
                A ChatGPT login is asked for its usage, any other upstream for its models. The exit code is 1 when the upstream can't be reached or \
                refuses the credentials. Nothing of the account is changed; a running server renews a login by itself.
                """)
        @Argument(help: "The account's name.") var name: String
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            let account = try LocalStore.account(name, settings)
            print("account   \(account.name), \(account.kind.rawValue), \(account.state.rawValue)")
            guard let place = Origin.parse(base: account.baseURL) else {
                complain("its base URL \(account.baseURL) is none")
                throw ExitCode(1)
            }
            var origin = place.origin
            origin.proxy = account.credentials.proxy
            let isLogin = account.kind == .chatGPT
            var fields: [(name: String, value: String)] = [("Accept", "application/json")]
            if !account.credentials.bearer.isEmpty { fields.append(("Authorization", "Bearer \(account.credentials.bearer)")) }
            fields += account.credentials.headers.map { ($0.name, $0.value) }
            if isLogin, let id = account.credentials.chatGPTAccountID, !id.hasPrefix("email_"), !id.hasPrefix("local_") {
                fields.append(("chatgpt-account-id", id))
            }
            let path = place.prefix + (isLogin ? "/wham/usage" : "/models")
            let fetch = BlockingFetch(settings)
            let began = Clock.now
            let answer: Fetch.Answer
            do throws(Fetch.Problem) {
                answer = try fetch.perform(
                    Fetch.Request(.get, origin, path + place.query, fields: fields), bytesMax: Limits.modelListBytesMax,
                    milliseconds: Limits.loginRequestMilliseconds)
            } catch {
                print("upstream  \(origin.authority) does not answer: \(error.reason.printable)")
                throw ExitCode(1)
            }
            print("upstream  \(origin.authority) answers in \(Clock.now.milliseconds(since: began)) ms: status \(answer.status)")
            try tell(answer, account, isLogin: isLogin, path: path)
        }

        private func tell(_ answer: Fetch.Answer, _ account: Account, isLogin: Bool, path: String) throws {
            if answer.status == 200 {
                print("login     good")
                return print(isLogin ? usage(answer.body) : models(answer.body))
            }
            let refusal = UpstreamRefusal(status: answer.status, body: answer.body.span.bytes, fields: HeaderFields())
            let word = [refusal.code, refusal.message].filter { !$0.isEmpty }.map { $0.cut(utf8: 200).printable }.joined(separator: ": ")
            switch answer.status {
            case 401, 403:
                print("login     refused\(word.isEmpty ? "" : " (\(word))")")
                print(
                    isLogin
                        ? "          a running server renews it at its next turn; if that is refused too: codex-lb accounts login"
                        : "          give it another key: codex-lb accounts add \(account.name) --replace --base-url \(account.baseURL) --key-file FILE"
                )
                throw ExitCode(1)
            case 402:
                print("login     good, but its account is closed or has not paid\(word.isEmpty ? "" : " (\(word))")")
                throw ExitCode(1)
            case 429: print("login     good, but out of quota or asked too often\(word.isEmpty ? "" : " (\(word))")")
            case 404: print("login     not known: this upstream has no \(path); a turn will show it")
            default:
                print("login     not known: the upstream fails\(word.isEmpty ? "" : " (\(word))")")
                throw ExitCode(1)
            }
        }

        private func usage(_ body: [UInt8]) -> String {
            let now = Clock.wall
            guard case .figures(let reading) = UsageAnswer(status: 200, body: body, now: now) else {
                return "usage     its answer tells none"
            }
            let windows = [("5 hours", reading.primary), ("week", reading.secondary), ("month", reading.monthly)].compactMap {
                name, window in
                window.map {
                    "\(name) \(Double($0.usedPermille) / 10)% used, anew in \(AccountView.span($0.resetsAt.milliseconds - now.milliseconds))"
                }
            }
            let models = reading.models.map { "\($0.model.printable) \(Double($0.window.usedPermille) / 10)% used" }
            let credits = reading.credits.map { $0.isUnlimited ? ["credits unlimited"] : $0.areUsable ? ["has credits"] : [] } ?? []
            let all = ["plan \((reading.plan ?? .unknown).name)"] + windows + models + credits
            return "usage     " + all.joined(separator: "; ")
        }

        private func models(_ body: [UInt8]) -> String {
            let json = body.span.bytes
            var (count, first): (Int, [String]) = (0, [])
            if let list = JSONScan.find(json, "data") ?? JSONScan.find(json, "models") {
                JSONScan.elements(json, list) { entry in
                    count += 1
                    if first.count < 5, let id = JSONScan.find(json, in: entry, "id").flatMap({ JSONScan.string(json, $0) }) {
                        first.append(id.cut(utf8: 64).printable)
                    }
                    return count < Limits.modelsListedMax
                }
            }
            return "models    \(count)" + (first.isEmpty ? "" : ": \(first.joined(separator: ", "))\(count > first.count ? ", …" : "")")
        }
    }
}
