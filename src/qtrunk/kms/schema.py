"""Tables of the key store, as steps from one version to the next; `PRAGMA user_version` says how many are
done.

Material is never in a column in clear: blocks have segment files, end-to-end keys a sealed column that is
emptied.

`extents` holds what is left of blocks: octets `cursor` to `last` (exclusive) of a block belong to one
`owner`, who allocates them from the front: `auth`, `alice`, `bob`. Both ends of a link have the same
extents but for messages on their way. `rank` is the order of use: the block's number, or for granted
extents the order of the grants. `tallies` are running totals, by link or `keys`.

`pools` are ordered pairs of SAEs, on the side of the initiator or of the target; `pool_segments` the key relayed ahead
for them. What was used of a living segment (`cursor`, `used`, `delivered`, `doubtful`, `lost`) is as of the last
checkpoint, the consume journal has the rest; `ended_unix_s` of one is when its last octet was given out. `id_key`
(sealed) is what its key IDs are made with, no key material. `pool_totals` has the sums over the segments that are at
their end, by reason: years of them are not to be read each time somebody asks for a ledger.
"""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID",
        """CREATE TABLE links (
            link TEXT PRIMARY KEY,
            role TEXT,
            last_block INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE blocks (
            link TEXT NOT NULL,
            block INTEGER NOT NULL,
            state TEXT NOT NULL,
            octets INTEGER NOT NULL,
            auth_octets INTEGER NOT NULL,
            epsilon_secret REAL NOT NULL,
            epsilon_correct REAL NOT NULL,
            epsilon_authentic REAL NOT NULL,
            sifted_bits INTEGER NOT NULL,
            leak_bits INTEGER NOT NULL,
            qber_key REAL NOT NULL,
            qber_test REAL NOT NULL,
            proof TEXT NOT NULL,
            made_unix_s REAL NOT NULL,
            held_unix_s REAL NOT NULL,
            released_unix_s REAL,
            ended_unix_s REAL,
            reason TEXT,
            PRIMARY KEY (link, block)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX live_blocks ON blocks (link, state, block) WHERE state IN ('pending', 'available')",
        """CREATE TABLE extents (
            id INTEGER PRIMARY KEY,
            link TEXT NOT NULL,
            block INTEGER NOT NULL,
            owner TEXT NOT NULL,
            is_released INTEGER NOT NULL,
            is_granted INTEGER NOT NULL,
            rank INTEGER NOT NULL,
            cursor INTEGER NOT NULL,
            last INTEGER NOT NULL CHECK (cursor < last),
            FOREIGN KEY (link, block) REFERENCES blocks (link, block)
        ) STRICT""",
        "CREATE INDEX extents_in_order ON extents (link, owner, is_released, is_granted, rank)",
        "CREATE INDEX extents_of_block ON extents (link, block)",
        """CREATE TABLE tallies (
            scope TEXT NOT NULL,
            name TEXT NOT NULL,
            amount INTEGER NOT NULL CHECK (amount >= 0),
            PRIMARY KEY (scope, name)
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE initiated (
            key_id TEXT PRIMARY KEY,
            state TEXT NOT NULL,
            reason TEXT,
            initiator TEXT NOT NULL,
            targets TEXT NOT NULL,
            key_bits INTEGER NOT NULL,
            expires_unix_s REAL NOT NULL,
            reserved_unix_s REAL NOT NULL,
            ended_unix_s REAL,
            receipt TEXT
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX initiated_open ON initiated (expires_unix_s) WHERE state = 'reserved'",
        """CREATE TABLE stored (
            key_id TEXT PRIMARY KEY,
            state TEXT NOT NULL,
            reason TEXT,
            initiator TEXT NOT NULL,
            targets TEXT NOT NULL,
            key_bits INTEGER NOT NULL,
            expires_unix_s REAL NOT NULL,
            stored_unix_s REAL NOT NULL,
            ended_unix_s REAL,
            receipt TEXT NOT NULL,
            fingerprint BLOB NOT NULL,
            sealed BLOB
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX stored_open ON stored (expires_unix_s) WHERE state = 'stored'",
        """CREATE TABLE recipients (
            key_id TEXT NOT NULL REFERENCES stored (key_id),
            target TEXT NOT NULL,
            state TEXT NOT NULL,
            ended_unix_s REAL,
            PRIMARY KEY (key_id, target)
        ) STRICT, WITHOUT ROWID""",
    ),
    ("ALTER TABLE blocks ADD COLUMN authentication TEXT NOT NULL DEFAULT 'wegman-carter'",),
    (
        """CREATE TABLE pools (
            pool INTEGER PRIMARY KEY,
            side INTEGER NOT NULL,
            initiator TEXT NOT NULL,
            target TEXT NOT NULL,
            UNIQUE (side, initiator, target)
        ) STRICT""",
        """CREATE TABLE pool_segments (
            rank INTEGER PRIMARY KEY,
            pool INTEGER NOT NULL REFERENCES pools (pool),
            segment INTEGER NOT NULL,
            state TEXT NOT NULL,
            reason TEXT,
            units INTEGER NOT NULL,
            cursor INTEGER NOT NULL,
            used BLOB,
            delivered INTEGER NOT NULL,
            doubtful INTEGER NOT NULL,
            lost INTEGER NOT NULL,
            destroyed INTEGER NOT NULL,
            id_key BLOB NOT NULL,
            receipt TEXT NOT NULL,
            made_unix_s REAL NOT NULL,
            expires_unix_s REAL NOT NULL,
            ended_unix_s REAL,
            UNIQUE (pool, segment)
        ) STRICT""",
        "CREATE INDEX pool_segments_living ON pool_segments (pool, rank) WHERE state = 'available'",
        "CREATE INDEX pool_segments_by_number ON pool_segments (segment)",
    ),
    (
        """CREATE TABLE pool_totals (
            pool INTEGER NOT NULL REFERENCES pools (pool),
            reason TEXT NOT NULL,
            units INTEGER NOT NULL,
            delivered INTEGER NOT NULL,
            doubtful INTEGER NOT NULL,
            lost INTEGER NOT NULL,
            destroyed INTEGER NOT NULL,
            PRIMARY KEY (pool, reason)
        ) STRICT, WITHOUT ROWID""",
        """INSERT INTO pool_totals
            SELECT pool, COALESCE(reason, ''), sum(units), sum(delivered), sum(doubtful), sum(lost), sum(destroyed)
            FROM pool_segments WHERE state != 'available' GROUP BY 1, 2""",
        # Whoever ends a segment, and for whatever reason: none is left out, none counted twice.
        """CREATE TRIGGER pool_segment_ends AFTER UPDATE OF state ON pool_segments
            WHEN OLD.state = 'available' AND NEW.state != 'available'
        BEGIN
            INSERT INTO pool_totals VALUES (NEW.pool, COALESCE(NEW.reason, ''), 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING;
            UPDATE pool_totals SET units = units + NEW.units, delivered = delivered + NEW.delivered,
                doubtful = doubtful + NEW.doubtful, lost = lost + NEW.lost, destroyed = destroyed + NEW.destroyed
                WHERE pool = NEW.pool AND reason = COALESCE(NEW.reason, '');
        END""",
    ),
)
