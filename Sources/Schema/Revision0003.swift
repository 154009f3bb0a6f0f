/// Neither database rewrites a row for it: one without the column has NULL there. What was stored before has no checksum.
let revision0003 = Revision(
    id: "0003", name: "checksums of usage records",
    statements: [
        .sqlite: [
            // CRC-32C of the row's other values (`RecordChecksum`).
            "ALTER TABLE usage_records ADD COLUMN checksum INTEGER"
        ],
        .postgresql: ["ALTER TABLE usage_records ADD COLUMN checksum BIGINT"],
    ])
