/// What operators set for accounts. A build that knows it works with 0003 too: accounts are then as if nothing was set.
let revision0004 = Revision(
    id: "0004", name: "account options",
    statements: [
        .sqlite: [
            "ALTER TABLE accounts ADD COLUMN policy TEXT NOT NULL DEFAULT 'normal'",
            "ALTER TABLE accounts ADD COLUMN weight INTEGER NOT NULL DEFAULT 100",
            // NULL: no limit.
            "ALTER TABLE accounts ADD COLUMN streams_max INTEGER",
            // A JSON list; NULL: any model.
            "ALTER TABLE accounts ADD COLUMN models TEXT",
            "ALTER TABLE accounts ADD COLUMN is_overflow INTEGER NOT NULL DEFAULT 0",
        ],
        .postgresql: [
            "ALTER TABLE accounts ADD COLUMN policy TEXT NOT NULL DEFAULT 'normal'",
            "ALTER TABLE accounts ADD COLUMN weight BIGINT NOT NULL DEFAULT 100",
            "ALTER TABLE accounts ADD COLUMN streams_max BIGINT",
            "ALTER TABLE accounts ADD COLUMN models TEXT",
            "ALTER TABLE accounts ADD COLUMN is_overflow BIGINT NOT NULL DEFAULT 0",
        ],
    ])
