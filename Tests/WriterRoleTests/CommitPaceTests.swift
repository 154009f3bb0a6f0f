import Testing
import Vocabulary

@testable import WriterRole

/// Goal: nobody waits for company that does not come, and records that trickle in share their commits. Times are microseconds.
@Suite struct CommitPaceTests {
    private static func at(_ microseconds: Int) -> Instant { Instant(nanoseconds: UInt64(1_000_000_000 + microseconds * 1_000)) }
    private static let batch = Limits.batchMilliseconds * 1_000

    @Test("A lone record is committed at once: the first one, and each that comes after a pause")
    func lone() {
        var pace = CommitPace()
        for n in 0..<100 {
            let now = n * (Self.batch + 300)
            #expect(pace.recordsWait(isFull: false, now: Self.at(now)) == .commit)
            pace.commitEnded(now: Self.at(now + 300))
        }
    }

    @Test("Soon after a commit the next record waits, a full group never")
    func soon() {
        var pace = CommitPace()
        pace.commitEnded(now: Self.at(0))
        #expect(pace.recordsWait(isFull: true, now: Self.at(10)) == .commit)
        #expect(pace.recordsWait(isFull: false, now: Self.at(20)) == .wait(milliseconds: Limits.batchMilliseconds))
        #expect(pace.recordsWait(isFull: false, now: Self.at(30)) == .goOnWaiting)
        #expect(pace.recordsWait(isFull: true, now: Self.at(40)) == .commit)
        pace.commitEnded(now: Self.at(300))
        #expect(
            pace.recordsWait(isFull: false, now: Self.at(310)) == .wait(milliseconds: Limits.batchMilliseconds),
            "the group got full: it paid")
    }

    @Test("After a wait in vain commits begin at once, for longer each time; after one that paid, waiting is worth it again")
    func inVain() {
        var (pace, now) = (CommitPace(), 0)
        pace.commitEnded(now: Self.at(0))
        for atOnce in [CommitPace.atOnceMin, CommitPace.atOnceMin * 2, CommitPace.atOnceMin * 4] {
            #expect(pace.recordsWait(isFull: false, now: Self.at(now)) == .wait(milliseconds: Limits.batchMilliseconds))
            #expect(pace.recordsWait(isFull: false, now: Self.at(now + Self.batch / 2 - 1)) == .goOnWaiting)
            now += Self.batch
            pace.waitEnded(now: Self.at(now))
            pace.commitEnded(now: Self.at(now))
            for _ in 0..<atOnce {
                #expect(pace.recordsWait(isFull: false, now: Self.at(now)) == .commit)
                pace.commitEnded(now: Self.at(now))
            }
        }
        for _ in 0..<10 {
            #expect(pace.recordsWait(isFull: false, now: Self.at(now)) == .wait(milliseconds: Limits.batchMilliseconds))
            #expect(pace.recordsWait(isFull: false, now: Self.at(now + Self.batch / 2 + 1)) == .goOnWaiting)
            now += Self.batch
            pace.waitEnded(now: Self.at(now))
            pace.commitEnded(now: Self.at(now))
        }
    }

    /// A store whose commits take `commit` µs, and senders that send again so long after their acknowledgement (closed loop) or at their
    /// times whatever happens (open). Returns commits and records in `span` µs.
    private static func simulate(senders: Int, gap: Int, isClosed: Bool, commit: Int, span: Int) -> (commits: Int, records: Int) {
        var pace = CommitPace()
        var arrivals = (0..<senders).map { $0 * gap / senders }  // each sender's next one
        var (waiting, timer, end): ([Int], Int?, Int?) = ([], nil, nil)
        var underway: [Int] = []
        var (commits, records) = (0, 0)
        func begin(_ now: Int) {
            (underway, waiting, timer, end) = (waiting, [], nil, now + commit)
            commits += 1
        }
        func advance(_ now: Int) {
            guard end == nil, !waiting.isEmpty else { return }
            switch pace.recordsWait(isFull: waiting.count >= Limits.batchRecordsMax, now: at(now)) {
            case .commit: begin(now)
            case .wait(let milliseconds): timer = now + milliseconds * 1_000
            case .goOnWaiting: break
            }
        }
        while true {
            let next = arrivals.indices.min { arrivals[$0] < arrivals[$1] }!
            let now = min(arrivals[next], timer ?? .max, end ?? .max)
            if now >= span { return (commits, records) }
            if now == end {
                (end, records) = (nil, records + underway.count)
                pace.commitEnded(now: at(now))
                if isClosed { for sender in underway { arrivals[sender] = now + gap } }
                advance(now)
            } else if now == timer {
                pace.waitEnded(now: at(now))
                begin(now)
            } else {
                waiting.append(next)
                arrivals[next] = isClosed ? .max : now + gap
                advance(now)
            }
        }
    }

    @Test("Senders that wait for their acknowledgements lose less than a tenth by waits", arguments: [1, 2, 4, 16, 64])
    func closedLoop(_ senders: Int) {
        let (commit, gap, span) = (200, 60, 5_000_000)
        let (_, records) = Self.simulate(senders: senders, gap: gap, isClosed: true, commit: commit, span: span)
        // At best every one of them is in each commit, or in each second one.
        let best = senders == 1 ? span / (commit + gap) : span / (2 * commit + gap) * senders
        #expect(records > best * 9 / 10, "\(records) of \(best)")
    }

    @Test("Senders that never wait share commits: hardly more than one in the time of a batch", arguments: [1, 2, 8, 64])
    func openLoop(_ senders: Int) {
        let (gap, span) = (3_000, 5_000_000)  // a worker sends what it has each 3 ms
        let (commits, records) = Self.simulate(senders: senders, gap: gap, isClosed: false, commit: 200, span: span)
        #expect(records > span / gap * senders * 99 / 100 - Limits.batchRecordsMax)
        #expect(commits < span / Self.batch * 11 / 10, "\(commits)")
    }
}
