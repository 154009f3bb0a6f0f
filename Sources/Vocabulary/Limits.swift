/// Every limit of the program: unit in the name, reason and effect beside it. `docs/limits.md` is this file in prose.
public enum Limits {
    // Downstream HTTP/1.1
    /// A longer request line is refused with 414.
    public static let requestLineBytesMax = 8 * 1024
    /// A larger head is refused with 431.
    public static let headBytesMax = 32 * 1024
    /// More header fields are refused with 431.
    public static let headerFieldsMax = 100
    /// A larger body, before or after decompression, is refused with 413.
    public static let bodyBytesMax = 32 * 1024 * 1024
    /// The same on the `responses` routes, whose bodies carry images and long histories.
    public static let responsesBodyBytesMax = 128 * 1024 * 1024
    /// From the first byte of a head to its end; then 408.
    public static let headMilliseconds = 10_000
    /// A body must bring `bodyProgressBytes` in each such span; else 408.
    public static let bodyProgressMilliseconds = 10_000
    public static let bodyProgressBytes = 10 * 1024
    /// A PROXY header before the first request; a longer one, with its TLVs, ends the connection. One must come within `headMilliseconds`.
    public static let proxyHeaderBytesMax = 8 * 1024
    /// An idle keep-alive connection is closed after this.
    public static let idleMilliseconds = 75_000
    /// Bytes of further requests that are kept while one is answered; above it the client is not read.
    public static let pipelinedBytesMax = 64 * 1024
    /// How long a client that sends nothing more, and one that goes on sending, gets to read the last answer.
    public static let lingerMilliseconds = 2_000
    public static let lingerMillisecondsMax = 30_000
    /// A client that has sent its end and waits for an answer gets so many interim responses, so far apart, to see whether it is still there.
    public static let clientProbeMilliseconds = 1_000
    public static let clientProbesMax = 2
    /// A client that takes no byte for this long is disconnected.
    public static let writeStalledMilliseconds = 60_000
    /// Bytes waiting for a client; reading from its upstream stops above this and starts again when all are taken.
    public static let downstreamHighBytes = 64 * 1024
    /// Silence after which a stream gets a comment, so that no proxy on the way gives it up.
    public static let keepaliveCommentMilliseconds = 10_000

    // Peers that vanish, on both sides
    /// A connection without traffic is probed after so long, then so often, and given up after so many probes without an answer.
    public static let peerProbeAfterSeconds = 30
    public static let peerProbeSeconds = 10
    public static let peerProbesMax = 3
    /// A peer that acknowledges nothing of what was sent for this long is given up.
    public static let peerSilentMilliseconds = 60_000

    // Logins
    /// A ChatGPT login is renewed no later than so long after it was made.
    public static let loginAgeSeconds = 8 * 24 * 3600
    /// One refresh, from the connection to the answer's end. Until it must be over nobody else tries.
    public static let renewalMilliseconds = 8_000
    /// Whoever refreshes and is not heard of for so long has died; then somebody else may.
    public static let renewalClaimMilliseconds = 30_000
    /// A turn that met a 401 waits so long for new credentials, then goes to another account.
    public static let renewalWaitMilliseconds = 12_000
    /// After a refresh that failed: 5, 10, 20 … s, at most an hour.
    public static let renewalBackoffMilliseconds = 5_000
    public static let renewalBackoffMillisecondsMax = 3_600_000
    /// New tokens that are refused as well are not renewed again for so long.
    public static let renewalSpacingMilliseconds = 60_000
    /// One request of `accounts login` to the issuer.
    public static let loginRequestMilliseconds = 30_000
    /// A login by browser ends after so long without one.
    public static let browserLoginMilliseconds = 900_000
    /// Connections of browsers that such a login has open at a time.
    public static let browserVisitorsMax = 16
    /// Which logins are due is looked at this often.
    public static let renewalLookMilliseconds = 1_000
    public static let renewalAnswerBytesMax = 256 * 1024

    // Quotas
    /// A login whose window is used up so far, in thousandths, gets turns only when no other account is left.
    public static let tightPermille = 950
    /// How often each login's upstream is asked for its figures; `CODEX_LB_USAGE_POLL_SECONDS`.
    public static let usagePollMilliseconds = 60_000
    /// One such question, and what its answer may take, bytes.
    public static let usageAnswerMilliseconds = 10_000
    public static let usageAnswerBytesMax = 256 * 1024
    /// Questions of one worker that are on their way at a time; further ones wait for the next look.
    public static let usagePollsMax = 16
    /// After failures the pause doubles up to this.
    public static let usagePollBackoffMillisecondsMax = 1_800_000
    /// Quotas of single models that an account has beside its windows; further ones are not looked at.
    public static let modelQuotasMax = 4
    /// The name of such a quota; longer ones are not looked at.
    public static let quotaNameBytesMax = 128
    /// An event that tells of quotas; longer ones are passed on unread.
    public static let quotaEventBytesMax = 16 * 1024

    // Health
    /// So many errors of an account's upstream, each so soon after the one before, and others come first.
    public static let drainingErrors = 2
    public static let drainingSeconds = 60
    /// Good turns, one at a time, after which it is trusted again.
    public static let probesMin = 3
    /// From so many errors on it is left alone for so long; twice as long with each further one.
    public static let backoffErrors = 3
    public static let errorBackoffMilliseconds = 30_000
    public static let errorBackoffMillisecondsMax = 300_000
    /// What was learned of an account is stored at most this often.
    public static let factSpacingMilliseconds = 5_000
    /// Accounts whose facts go into one write.
    public static let factAccountsMax = 256
    /// How often instances on one database look for what others have learned. A fact may be written so much later than it was learned.
    public static let factReadMilliseconds = 5_000
    public static let factDelayMilliseconds: Int64 = 300_000
    /// A stored fact that lies so far ahead of the clock was written by one that was wrong, and gives way to any other.
    public static let factAheadMilliseconds: Int64 = 86_400_000
    /// A fact's text in the store; longer ones are not read.
    public static let factBytesMax = 8 * 1024

    // Conversations
    /// Conversations whose account is remembered; beyond it the one that would be forgotten first makes room.
    public static let pinsMax = 128 * 1024
    /// A response, a turn's state or a session stays with its account for so long after its last turn.
    public static let pinSeconds = 24 * 3600
    /// A connection to the address that a browser comes back to at a login: until its request, and from the answer to its end.
    public static let browserVisitorMilliseconds = 5_000
    public static let browserGoodbyeMilliseconds = 1_000
    /// A longer name of a model has no near ones.
    public static let nearNameBytesMax = 64
    /// Pins that one statement tells other instances of, and reads from them. The second is the larger: what one transaction told comes whole.
    public static let pinsToldMax = 1_000
    public static let pinNewsMax = 4_000
    /// Pins that wait to be told; beyond that they are not.
    public static let pinsUntoldMax = 16 * 1024
    /// Between two looks at what other instances have told, and between what is learned and told.
    public static let pinNewsMilliseconds = 400
    public static let pinTellMilliseconds = 200
    /// How often the table of told pins is cut to its size.
    public static let pinTrimMilliseconds = 60_000
    /// How often the pins are written to a file while there are turns: what a sudden end of the instance forgets.
    public static let pinFileMilliseconds = 30_000
    /// A prompt's cache is worth returning to for so long (`prompt_cache_key`, or the conversation's beginning).
    public static let cachePinSeconds = 1_800
    /// A conversation leaves its account when that has so many turns more in flight than the least busy one.
    public static let pinnedSurplusMax = 16
    /// Longer keys of conversations are not looked at.
    public static let affinityKeyBytesMax = 512
    /// Of a conversation's beginning so many items, and of each so many bytes, tell it from others.
    public static let beginningItemsMax = 8
    public static let beginningItemBytesMax = 512

    // Memory
    /// An instance without `CODEX_LB_MEMORY_LIMIT` holds bodies and unsent bytes up to this part of the machine's or cgroup's memory.
    public static let memoryPart = 4
    /// What is asked to be counted piece by piece is counted in steps of this, bytes.
    public static let memoryStepBytes = 64 * 1024
    /// Where writes are put together: what a long one needed beyond this is given back after it.
    public static let scratchBytesMax = 256 * 1024
    /// The end of an answer that no copy is kept of: the usage stands there.
    public static let usageTailBytes = 64 * 1024
    /// What an output item costs beside its bytes.
    public static let itemOverheadBytes = 64
    /// Room for a body of known length is made at once when this much of it has come: growing by copies would hold up the loop.
    public static let bodyReservedBytes = 1 << 20

    /// Threads of a worker for bodies, and for reads of SQLite; name look-ups have as many again as both (libuv keeps half for others).
    public static let bodyThreadsMax = 2
    public static let readThreadsMax = 2
    public static let threadsMax = 8

    // JSON from outside
    /// A document nested deeper is refused (request: 400). Real requests stay below 30.
    public static let jsonDepthMax = 128
    /// Objects and arrays of one document; each costs 12 bytes of index. More are refused with 400.
    public static let jsonContainersMax = 4 * 1024 * 1024
    /// Members of one object that is read, not passed on unread; more are refused with 400.
    public static let jsonMembersMax = 4096
    /// Values of a document that must be rewritten in depth; each costs about 60 bytes of tree. More are refused with 400.
    public static let jsonTreeValuesMax = 1_000_000
    /// A larger request body is read, checked and translated on the thread pool: on the loop it would hold up everybody else.
    public static let inlineBodyBytesMax = 64 * 1024
    /// A longer model name is refused with 400: it would be repeated in messages, logs and records.
    public static let modelBytesMax = 256
    /// Tokens of one kind in one turn; what an upstream tells beyond is cut to this and marked `usage_out_of_range`. Records of 9·10^9 such
    /// turns still sum to less than 2^63.
    public static let turnTokensMax: Int64 = 1_000_000_000

    // Upstream HTTP/1.1
    /// From the name look-up to the connection that can be used, over all addresses of an upstream.
    public static let connectMilliseconds = 8_000
    /// The next address of a name is tried beside the one before after this (RFC 8305 §5: "Connection Attempt Delay").
    public static let connectStaggerMilliseconds = 250
    /// A request goes to its upstream in pieces of so many bytes: the most that is held twice.
    public static let uploadPieceBytes = 64 * 1024
    /// From the request's last byte to the response's first; then 502 `upstream_request_timeout` or failover.
    public static let firstByteMilliseconds = 600_000
    /// Silence inside a response; then `stream_idle_timeout`.
    public static let upstreamIdleMilliseconds = 7_200_000
    /// A pooled upstream connection idle for longer is closed.
    public static let upstreamPoolIdleMilliseconds = 60_000
    public static let upstreamPoolIdlePerOriginMax = 256
    public static let upstreamHeadBytesMax = 64 * 1024
    /// A longer event ends its stream with `stream_event_too_large`.
    public static let eventBytesMax = 16 * 1024 * 1024
    /// An upstream's error body is read up to this; the rest is cut.
    public static let errorBodyBytesMax = 256 * 1024
    /// From an error answer's head to its end; then what has come of its body must do.
    public static let errorBodyMilliseconds = 10_000
    /// A JSON answer that must be assembled from a stream.
    public static let assembledBodyBytesMax = 64 * 1024 * 1024
    public static let dnsCacheMilliseconds = 30_000
    public static let dnsCacheEntriesMax = 256

    /// What a packed answer gives in one iteration of the loop, and in all; then it fails.
    public static let unpackedPassBytes = 256 * 1024
    public static let unpackedAnswerBytesMax = 1 << 30

    // Files
    /// Bytes of a file that a client may announce; more is refused with 400, as by ChatGPT.
    public static let fileBytesMax = 512 << 20
    /// Of a request about a file, which has a name and some numbers; 413 beyond it.
    public static let fileRequestBytesMax = 64 * 1024
    /// Files of a turn's input by which its account is looked up; further ones are not looked at.
    public static let turnFilesMax = 16

    // Models
    /// An upstream that has not told its models by then is asked again later; its clients have long been answered without it.
    public static let modelListMilliseconds = 10_000
    /// A list is asked for anew when it is so old (`CODEX_LB_MODEL_LIST_SECONDS`); after failures sooner, with a pause that doubles.
    public static let modelListKeptMilliseconds = 300_000
    public static let modelListRetryMilliseconds = 15_000
    /// Once some account's models are known, a client waits so long at most for those of others that were never told.
    public static let modelListWaitMilliseconds = 1_000
    /// Bytes of an `ETag` of a list of models; a longer one is not sent back.
    public static let etagBytesMax = 256
    public static let modelListBytesMax = 4 * 1024 * 1024
    public static let modelsListedMax = 4_096
    /// An account whose upstream does not know a model is not asked for it for so long, while another may have it.
    public static let modelRefusedMilliseconds = 600_000

    // The turn
    /// `response.created` and its like are kept back this long at most, to keep the right to fail over.
    public static let holdBackMilliseconds = 500
    /// More bytes of such events are passed on at once.
    public static let heldBackBytesMax = 64 * 1024
    /// A client that leaves in the middle of an answer: its upstream may still tell the usage for so long; then it is estimated.
    public static let usageAfterClientMilliseconds = 2_000
    /// Choices of one chat stream that are watched for their end.
    public static let choicesMax = 256
    /// Accounts tried for one turn.
    public static let accountAttemptsMax = 3
    /// Requests to one account for one turn when it answers 500.
    public static let sameAccountAttemptsMax = 3

    /// An account that could not be reached is left alone for so long; twice as long with each further failure in a row.
    public static let unreachableMilliseconds = 5_000
    public static let unreachableMillisecondsMax = 300_000

    // Processes
    public static let workersMax = 64
    /// Generations that may drain at a time: before one more is begun the oldest must end sooner.
    public static let drainingGenerationsMax = 8
    /// Rows of the scoreboard, and journals: the draining generations, the one that serves and the one that starts. Without a free one a
    /// worker is not started before another has ended.
    public static let rowsMax = workersMax * (drainingGenerationsMax + 2)
    /// Accounts of one store: `accounts add` refuses more. Each takes 192 bytes of shared memory, and 4 more for each row in use.
    public static let accountsMax = 4096
    /// What `accounts set --weight` takes, and what an account has without it.
    public static let accountWeights = 1...1000
    public static let accountWeightDefault = 100
    /// Turns that one account may be allowed at a time.
    public static let streamsMaxMax = 100_000
    /// Models that an account may be limited to.
    public static let accountModelsMax = 256
    /// Fields that an account may add to its requests, and the bytes of one with its name.
    public static let accountHeadersMax = 16
    public static let accountHeaderBytesMax = 8 * 1024
    /// Names of settings and models that a refusal suggests.
    public static let nearNamesMax = 3
    /// Of many names so many, those that share most letters, are compared in full.
    public static let nearNameCandidatesMax = 128
    /// Settings in the store, model aliases among them, and the bytes of one value.
    public static let settingsMax = 1024
    public static let settingBytesMax = 1024
    /// Bytes of the name of whoever gives an order; the rest is cut.
    public static let userNameBytesMax = 64
    /// Operators' changes that the store keeps, of each the bytes of one text and the elements of one list: a day's hundred make three years.
    public static let auditRowsMax = 100_000
    public static let auditTextBytesMax = 256
    public static let auditListMax = 32

    // Choosing an account
    /// What is known of accounts is read from shared memory anew for each choice where others have changed it, up to so many accounts;
    /// beyond it no more often than `refreshNanosecondsPerAccount` each: a hundredth of a worker's time.
    public static let accountsAlwaysFresh = 64
    public static let refreshNanosecondsPerAccount: UInt64 = 5_000
    /// Percentage points, in thousandths, that a turn in flight adds to what is used of an account's quota.
    public static let pressurePermille = 25
    /// Sets of accounts, by route and model, that a worker keeps the mask of; the oldest makes room.
    public static let modelMasksMax = 256
    /// A turn that finds all its accounts at their caps waits so long for one, then gets 429.
    public static let capWaitMilliseconds = 10_000
    /// Turns of one worker that wait so; more get 429 at once.
    public static let capWaitersMax = 1_024
    /// How often those that wait look whether another worker has let an account go.
    public static let capLookMilliseconds = 20
    /// The supervisor gives up a worker that has not explained its choice by then.
    public static let explainMilliseconds = 3_000
    /// Usage records of one worker that the store has not acknowledged; a journal without room for the records of all open turns
    /// refuses new ones with 503.
    public static let journalBytes = 16 * 1024 * 1024
    /// Kept of the disk for records that a stop on a full one must leave as a file: some 6,000 of them.
    public static let spoolReservedBytes = 2 * 1024 * 1024
    /// One usage record in the journal: its texts are cut to the sizes below, the rest is numbers.
    public static let journalRecordBytesMax = 1280
    public static let recordModelBytesMax = 256
    public static let recordCodeBytesMax = 128
    public static let requestIDBytesMax = 128
    /// A response from its terminal event to the end of its body; then the client gets its end all the same.
    public static let afterTerminalMilliseconds = 1_000
    /// A store that acknowledges nothing for so long while records wait, or one that is asked all the time and is silent for so long, is told
    /// as away.
    public static let storeSilentMilliseconds = 2_000
    public static let storePolledSilentMilliseconds = 3_000
    /// Buffers that a worker keeps for answers that come and go.
    public static let spareBuffersMax = 16
    /// A request's body below this is sent together with its head.
    public static let joinedBodyBytesMax = 16 * 1024
    /// SQLite's log beyond this, while a reader keeps it from being emptied, is told: four times what it grows to between two checkpoints.
    public static let logBytesMax = 64 * 1024 * 1024
    /// How often at most.
    public static let logHeldToldMilliseconds = 60_000
    /// Records of one batch; a COMMIT that has as many takes no further batch.
    public static let batchRecordsMax = 200
    /// How long a COMMIT soon after another one waits for company.
    public static let batchMilliseconds = 5
    /// Records that wait in the writer; above it the workers are not read, and their journals fill.
    public static let intakeRecordsMax = 20_000
    /// One frame between processes.
    public static let frameBytesMax = 32 * 1024 * 1024
    /// From SIGTERM until open turns are cut.
    public static let drainMilliseconds = 30_000
    /// The same from a reload on, or from the order that there be fewer workers: nobody waits for their end.
    public static let reloadDrainMilliseconds = 600_000
    /// A signal that asks for another reload so soon after the last one began is put off until then: a burst of them is one reload more.
    public static let reloadSpacingMilliseconds = 1_000
    /// The settings of a reload are read and checked within this; else the reload fails.
    public static let reloadCheckMilliseconds = 5_000
    /// The same for a sign of life of its database's hosts, all together.
    public static let reloadConnectMilliseconds = 1_500
    /// What the check may tell of the settings, bytes.
    public static let reloadReportBytesMax = 1 << 20
    /// The command line waits so long for the end of a reload.
    public static let reloadAnswerMilliseconds = 120_000
    /// All workers of a generation that have ended so often each within this span after its reload have the reload undone.
    public static let trialExits = 2
    public static let trialMilliseconds = 10_000
    /// Another program shows within this that it can take a running server over; else the upgrade fails.
    public static let upgradeCheckMilliseconds = 10_000
    /// A program that can take over waits so long for commands and answers on their way between processes.
    public static let upgradeRestMilliseconds = 20_000
    /// More starts of one worker within this span are followed by a back-off, which doubles from the first to the second of these.
    public static let startsMax = 5
    public static let startsMilliseconds = 10_000
    public static let backOffMilliseconds = 500
    public static let backOffMillisecondsMax = 5_000
    /// A service manager is told this often that a drain goes on, and gives it twice as long.
    public static let extendMilliseconds = 10_000
    /// A command that must have a database for itself waits so long for whoever is just leaving it, and a supervisor at its end for its backup.
    public static let leavingMilliseconds = 700
    /// Usage records that one transaction deletes: the writer stores others between two of them.
    public static let pruneBatchMax = 1_000
    /// Between two looks for usage records that are older than they are kept.
    public static let pruneMilliseconds = 3_600_000
    /// Days that usage records can be kept.
    public static let retentionDays = 1...36_500
    /// Messages that a service manager does not take are kept up to so many; then the oldest goes, but for sockets to keep.
    public static let notificationsMax = 64
    /// How long the last word of a supervisor waits for the service manager to hear it.
    public static let barrierMilliseconds = 500
    /// Idle connections that a worker hands over, or takes, in one iteration of its loop.
    public static let handoversPerIteration = 64
    /// From spawn to READY.
    public static let readyMilliseconds = 30_000
    /// A child whose heartbeat stands still for this long is ended.
    public static let heartbeatMilliseconds = 10_000
    /// A supervisor that itself stood still for this long can't tell how long its children were silent: they are given all of it again.
    public static let supervisorPauseMilliseconds = 2_000
    /// A command that the writer has not answered by then is answered by the supervisor: longer than it takes to replace a hung writer.
    public static let writerAnswerMilliseconds = 15_000
    /// The command line gives up a server that has not answered by then.
    public static let controlAnswerMilliseconds = 20_000
    /// A start tries an address in use again for this long: orphans of a dead supervisor are about to leave it.
    public static let addressWaitMilliseconds = 1_000
    /// Connections taken out of the backlog by one worker when it stops listening.
    public static let backlogTakenMax = 4_096
    /// A worker with so many connections more than the mean of those that serve, and an eighth more, leaves new ones to the others: for so long
    /// at most, then it listens for a moment whatever they have.
    public static let balanceSlack = 8
    public static let balancePauseMilliseconds = 1_000
    public static let balanceFreeMilliseconds = 50
    /// A worker whose heartbeat stands still for this long does not count among them.
    public static let balanceSilentMilliseconds = 500
    /// A connection without a request gets this long to send one when its worker drains.
    public static let drainIdleMilliseconds = 1_000
    /// A path that is none of ours, in the access log.
    public static let accessPathBytesMax = 256
    /// Log lines of a process that stderr has not taken; further ones are dropped and counted.
    public static let logQueueBytesMax = 256 * 1024
    /// Lines with the same message per second and process; the others are counted, and one line says how many.
    public static let logLinesPerSecondMax = 20
    /// A server's process waits this long at its end for stderr to take its last lines, a command by hand for as long as its reader may want.
    public static let logFlushMilliseconds = 500
    public static let commandFlushMilliseconds = 60_000
    /// How often the supervisor and the writer look whether their sockets still have their names, and spools have come.
    public static let lookMilliseconds = 1_000
}
