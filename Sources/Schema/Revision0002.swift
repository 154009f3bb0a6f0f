/// Nothing in it is needed to serve: a build that knows it works with 0001 too.
let revision0002 = Revision(
    id: "0002", name: "leases, usage by key",
    statements: [
        .sqlite: [
            // Who does a background job, for databases that several instances share. `epoch` grows with each new holder.
            """
            CREATE TABLE leases (
              name TEXT PRIMARY KEY NOT NULL,
              holder TEXT NOT NULL,
              epoch INTEGER NOT NULL,
              expires_at_ms INTEGER NOT NULL,
              done_at_ms INTEGER NOT NULL
            ) STRICT, WITHOUT ROWID
            """,
            // Requests from this host carry no key and cost nothing here.
            "CREATE INDEX usage_records_key ON usage_records (key_id) WHERE key_id IS NOT NULL",
        ],
        .postgresql: [
            """
            CREATE TABLE leases (
              name TEXT PRIMARY KEY NOT NULL,
              holder TEXT NOT NULL,
              epoch BIGINT NOT NULL,
              expires_at_ms BIGINT NOT NULL,
              done_at_ms BIGINT NOT NULL
            )
            """,
            "CREATE INDEX usage_records_key ON usage_records (key_id) WHERE key_id IS NOT NULL",
        ],
    ])
