let revision0001 = Revision(
    id: "0001", name: "accounts, client keys, usage, settings",
    statements: [
        .sqlite: [
            """
            CREATE TABLE revision_history (
              id TEXT PRIMARY KEY NOT NULL,
              name TEXT NOT NULL,
              checksum TEXT NOT NULL,
              applied_at_ms INTEGER NOT NULL,
              duration_ms INTEGER NOT NULL,
              app_version TEXT NOT NULL
            ) STRICT, WITHOUT ROWID
            """,
            // The store's own facts: snapshot_version, key_fingerprint, pepper (sealed).
            """
            CREATE TABLE state (
              key TEXT PRIMARY KEY NOT NULL,
              value ANY NOT NULL
            ) STRICT, WITHOUT ROWID
            """,
            // What the operator set.
            """
            CREATE TABLE settings (
              key TEXT PRIMARY KEY NOT NULL,
              value TEXT NOT NULL
            ) STRICT, WITHOUT ROWID
            """,
            // A removed account keeps its row, without slot and credentials, so that old usage keeps its name.
            """
            CREATE TABLE accounts (
              id INTEGER PRIMARY KEY AUTOINCREMENT,
              slot INTEGER UNIQUE,
              name TEXT NOT NULL,
              kind TEXT NOT NULL,
              state TEXT NOT NULL,
              base_url TEXT NOT NULL,
              credentials BLOB NOT NULL,
              created_at_ms INTEGER NOT NULL,
              changed_at_ms INTEGER NOT NULL,
              removed_at_ms INTEGER
            ) STRICT
            """,
            "CREATE UNIQUE INDEX accounts_live_name ON accounts (name) WHERE removed_at_ms IS NULL",
            """
            CREATE TABLE client_keys (
              id INTEGER PRIMARY KEY AUTOINCREMENT,
              name TEXT NOT NULL,
              digest BLOB NOT NULL UNIQUE,
              prefix TEXT NOT NULL,
              models TEXT,
              expires_at_ms INTEGER,
              revoked_at_ms INTEGER,
              created_at_ms INTEGER NOT NULL
            ) STRICT
            """,
            "CREATE UNIQUE INDEX client_keys_live_name ON client_keys (name) WHERE revoked_at_ms IS NULL",
            // The id is a UUIDv7: its order is the order of time, so that new rows go to the end and the newest need no index of their own.
            """
            CREATE TABLE usage_records (
              id BLOB PRIMARY KEY NOT NULL,
              time_ms INTEGER NOT NULL,
              route TEXT NOT NULL,
              transport TEXT NOT NULL,
              key_id INTEGER,
              account_id INTEGER,
              request_id TEXT NOT NULL,
              model_asked TEXT NOT NULL,
              model_served TEXT NOT NULL,
              status INTEGER NOT NULL,
              error_code TEXT NOT NULL,
              input_tokens INTEGER NOT NULL,
              cached_input_tokens INTEGER NOT NULL,
              output_tokens INTEGER NOT NULL,
              reasoning_tokens INTEGER NOT NULL,
              cost_microdollars INTEGER,
              first_byte_ms INTEGER,
              duration_ms INTEGER NOT NULL,
              attempts INTEGER NOT NULL,
              request_bytes INTEGER NOT NULL,
              response_bytes INTEGER NOT NULL
            ) STRICT, WITHOUT ROWID
            """,
        ]
    ])
