import Testing

@testable import Schema

private let revisions = ["0001", "0002", "0003"].map { Revision(id: $0, name: "r\($0)", statements: [.sqlite: ["SELECT \($0)"]]) }
private func entry(_ id: String, name: String? = nil, checksum: String? = nil) -> Ledger.Entry {
    Ledger.Entry(
        id: id, name: name ?? "r\(id)", checksum: checksum ?? revisions.first { $0.id == id }?.checksum(.sqlite) ?? "?")
}
private func judge(_ applied: [Ledger.Entry]) throws(Ledger.Refusal) -> Int { try Ledger.judge(applied, revisions, .sqlite) }

@Suite struct LedgerTests {
    @Test("None, some and all applied")
    func known() throws {
        #expect(try judge([]) == 0)
        #expect(try judge([entry("0001"), entry("0002")]) == 2)
        #expect(try judge(revisions.map { entry($0.id) }) == 3)
    }

    @Test("Four refusals, each its own")
    func refusals() {
        #expect(throws: Ledger.Refusal.newer("0004")) { try judge(revisions.map { entry($0.id) } + [entry("0004")]) }
        #expect(throws: Ledger.Refusal.missing("0002")) { try judge([entry("0001"), entry("0003")]) }
        #expect(throws: Ledger.Refusal.missing("0001")) { try judge([entry("0002")]) }
        #expect(throws: Ledger.Refusal.diverged("0002", theirs: "other", ours: "r0002")) {
            try judge([entry("0001"), entry("0002", name: "other")])
        }
        #expect(throws: Ledger.Refusal.changed("0002", theirs: "x", ours: revisions[1].checksum(.sqlite))) {
            try judge([entry("0001"), entry("0002", checksum: "x")])
        }
    }

    @Test("White space and line breaks do not change a checksum, words do")
    func checksum() {
        func sum(_ text: String) -> String { Revision(id: "1", name: "", statements: [.sqlite: [text]]).checksum(.sqlite) }
        #expect(sum("CREATE TABLE a (b)") == sum("CREATE  TABLE a\r\n\t(b)  "))
        #expect(sum("CREATE TABLE a (b)") != sum("CREATE TABLE a (c)"))
        #expect(sum("a") != Revision(id: "1", name: "", statements: [.sqlite: ["a", ""]]).checksum(.sqlite))
    }

    @Test("Ids ascend without gaps, every revision has both dialects, and released ones are as they were released")
    func shipped() {
        #expect(Schema.revisions.map(\.id) == (1...Schema.revisions.count).map { Schema.name($0) })
        #expect(Schema.revisions.allSatisfy { r in Dialect.allCases.allSatisfy { r.statements[$0] != nil } })
        #expect((1...Schema.revisions.count).contains(Schema.oldestUsable))
        #expect(Schema.revisions[0].checksum(.sqlite) == "0624c6e0d2858973")
        #expect(
            Schema.revisions.prefix(7).map { $0.checksum(.postgresql) } == [
                "f8cbc193d6ddd321", "1bfd2df0c44422e0", "26791636678487bf", "68cec404bed3f3fc", "e56cc782879f0a2b", "cd05331de019b116",
                "8abc524c4bd8b4f4",
            ])
        #expect(Schema.revisions[1].checksum(.sqlite) == "4ea8ce1b87389511")
        #expect(Schema.revisions[2].checksum(.sqlite) == "ac645e76fc12720e")
        #expect(Schema.revisions[3].checksum(.sqlite) == "a1d96e2ce6a79cab")
        #expect(Schema.revisions[4].checksum(.sqlite) == "43d3bf249f89024f")
        #expect(Schema.revisions[6].checksum(.sqlite) == "ef0bd2ae07180359")
        #expect(Schema.revisions[Schema.checksumRevision - 1].name.contains("checksum"))
        #expect(Schema.revisions[Schema.factsRevision - 1].name.contains("facts"))
        #expect(Schema.revisions[Schema.auditRevision - 1].name.contains("audit"))
    }
}
