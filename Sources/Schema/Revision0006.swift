/// Nothing in it is needed to serve: without it instances don't know of each other's conversations.
let revision0006 = Revision(
    id: "0006", name: "pins",
    statements: [
        // One instance: its workers share them in memory.
        .sqlite: [],
        .postgresql: [
            // `changed`: the transaction that wrote the row.
            """
            CREATE TABLE pins (
              key BIGINT PRIMARY KEY NOT NULL,
              account_id BIGINT NOT NULL,
              instance BIGINT NOT NULL,
              expires_s BIGINT NOT NULL,
              changed xid8 NOT NULL DEFAULT pg_current_xact_id()
            )
            """,
            "CREATE INDEX pins_changed ON pins (changed)",
        ],
    ])
