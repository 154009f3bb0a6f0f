public import HTTPWire
public import Metering
public import Vocabulary

/// What the role does for a turn, in the order in which it is told. The last one may bring the next event at once.
public enum TurnAction: Sendable {
    /// Choose an account, without those of `tried`: `accountSelected` or `noAccount` follows, now or when one has room.
    case select
    /// Get a connection to the account and send it the request. `fresh`: none that was kept.
    case send(fresh: Bool)
    /// As many accounts as a turn asks do not offer its model: `noAccount` follows, with what its client may have meant.
    case modelRefused
    /// The request goes out once more.
    case tryAgain(isFailover: Bool)
    /// The account's credentials were refused and may be renewed: `credentialsRenewed` follows.
    case renewCredentials
    /// What was met counts against the account.
    case penalise(Verdict.Penalty, Failure)
    /// The account's upstream told of its quotas in the middle of an answer.
    case learnQuota(QuotaReading)
    /// The upstream's connection, or the attempt to get one, is given up.
    case closeUpstream
    /// The upstream takes no more of the request; its answer is still read.
    case giveUpRequest
    /// The client's answer begins; its bytes are in `out`, now or later, and go out at the next flush.
    case begin(AnswerAdapter.Head)
    /// Puts the usage record into the journal, before anything of the answer that comes later goes out.
    case record(TurnOutcome)
    /// One line for whoever watches.
    case logRefused(status: Int, code: String)
    /// What is in `out` goes out now.
    case flush
    /// The client gets the upstream's own refusal.
    case passRefusal(ResponseHead, body: [UInt8])
    /// The client gets an error of ours: as a stream with these events, or as an answer of its own.
    case respond(ProxyError, events: [UInt8]?)
    /// The answer is whole.
    case end
    /// The answer can't be completed: the client must see that it is cut.
    case abort
    /// Its client has left: only the upstream is waited for.
    case awaitUsage
    /// Nothing is left of the turn.
    case over
}

/// What a turn's record says of it.
public struct TurnOutcome: Sendable, Equatable {
    public var status: Int
    /// Empty when it is good.
    public var errorCode: String
    public var findings: UsageFindings
    /// Upstream requests.
    public var attempts: Int

    /// The record's code: of a failure, or that the numbers were guessed or changed, which whoever reads the record must see.
    public var mark: String {
        if findings.isEstimated { return errorCode.isEmpty ? "usage_estimated" : errorCode + "_usage_estimated" }
        return errorCode.isEmpty && findings.isOutOfRange ? "usage_out_of_range" : errorCode
    }
}

/// How far a request had come when its connection was lost.
public enum UpstreamProgress: Sendable {
    /// The upstream had closed its side before a byte of the request reached it: it can't have read any. Only this may be sent again.
    case unread
    /// The request may have been read, and its work be done.
    case sent
    /// Some byte of the answer had come.
    case answered
}
