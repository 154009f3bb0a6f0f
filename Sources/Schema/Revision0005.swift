/// Nothing in it is needed to serve: without it a start knows nothing of the accounts' quotas and cooldowns.
let revision0005 = Revision(
    id: "0005", name: "facts of accounts",
    statements: [
        .sqlite: [
            // The latest of each subject: quota, health, state. `value` is a JSON object.
            """
            CREATE TABLE account_facts (
              account_id INTEGER NOT NULL,
              subject TEXT NOT NULL,
              at_ms INTEGER NOT NULL,
              value TEXT NOT NULL,
              PRIMARY KEY (account_id, subject)
            ) STRICT, WITHOUT ROWID
            """
        ],
        .postgresql: [
            """
            CREATE TABLE account_facts (
              account_id BIGINT NOT NULL,
              subject TEXT NOT NULL,
              at_ms BIGINT NOT NULL,
              value TEXT NOT NULL,
              PRIMARY KEY (account_id, subject)
            )
            """
        ],
    ])
