/// Nothing in it is needed to serve: without it no operator's change is noted.
let revision0007 = Revision(
    id: "0007", name: "audit of operators' changes",
    statements: [
        .sqlite: [
            // `id` has no gaps: each change of the snapshot's version waits for the one before. `detail` is a JSON object.
            """
            CREATE TABLE audit (
              id INTEGER PRIMARY KEY NOT NULL,
              at_ms INTEGER NOT NULL,
              actor TEXT NOT NULL,
              action TEXT NOT NULL,
              subject TEXT NOT NULL,
              detail TEXT NOT NULL
            ) STRICT
            """
        ],
        .postgresql: [
            """
            CREATE TABLE audit (
              id BIGINT PRIMARY KEY NOT NULL,
              at_ms BIGINT NOT NULL,
              actor TEXT NOT NULL,
              action TEXT NOT NULL,
              subject TEXT NOT NULL,
              detail TEXT NOT NULL
            )
            """
        ],
    ])
