-- Is 002 in this database, and did it leave alone what was there?
--
-- effect = false marks what also holds without 002, so that it is not taken for a sign of it.
-- Rows are judged only by what stays true whatever the application writes later.


SELECT
    'table' AS suite,
    'table llm_providers exists' AS "check",
    count(*) = 1 AS ok,
    CASE WHEN count(*) = 0 THEN 'there is no such table on the search_path: 001 comes first' END AS detail,
    false AS effect
FROM pg_class
WHERE oid = to_regclass('llm_providers')
    AND relkind IN ('r', 'p');


-- The five columns: there, of their type, with their default, optional, explained.

WITH wanted (col, type) AS (
    VALUES
        ('encrypted_api_key', 'text'),
        ('api_key_source', 'varchar(50)'),
        ('api_key_updated_at', 'timestamp'),
        ('api_key_last_tested', 'timestamp'),
        ('api_key_test_status', 'varchar(20)')
),
found AS (
    SELECT
        w.*,
        a.attname,
        a.attnotnull,
        a.attgenerated,
        -- as format_type prints it, with the two long names shortened
        replace(replace(format_type(a.atttypid, a.atttypmod),
            'character varying', 'varchar'), ' without time zone', '') AS found_type,
        pg_get_expr(d.adbin, d.adrelid) AS expr,
        col_description(a.attrelid, a.attnum) AS comment
    FROM wanted w
    LEFT JOIN pg_attribute a
        ON a.attrelid = to_regclass('llm_providers') AND a.attname = w.col AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d
        ON d.adrelid = a.attrelid AND d.adnum = a.attnum
)
SELECT
    r.suite,
    r."check",
    coalesce(r.ok, false) AS ok,
    CASE WHEN NOT coalesce(r.ok, false) THEN
        CASE WHEN attname IS NULL THEN 'there is no such column' ELSE r.detail END
    END AS detail,
    true AS effect
FROM found
CROSS JOIN LATERAL (
    VALUES
        ('columns',
         format('column llm_providers.%s exists', col),
         attname IS NOT NULL AND attgenerated = '',
         'it is generated, so nobody can write to it',
         true),
        ('column types',
         format('column llm_providers.%s is %s', col, type),
         found_type = type,
         'it is ' || found_type,
         true),
        -- 'environment'::character varying, with or without a length
        ('defaults',
         'column llm_providers.api_key_source has the default environment',
         expr ~ '^''environment''(::|$)',
         coalesce('its default is ' || expr, 'it has no default'),
         col = 'api_key_source'),
        ('defaults',
         'column llm_providers.encrypted_api_key has no default',
         attname IS NOT NULL AND expr IS NULL,
         'its default is a key that every new provider would share',
         col = 'encrypted_api_key'),
        ('optional columns',
         format('an INSERT may leave out llm_providers.%s', col),
         NOT attnotnull OR expr IS NOT NULL,
         'it is not null and has no default, so INSERTs written for 001 fail',
         true),
        ('comments',
         format('column llm_providers.%s has a comment', col),
         comment IS NOT NULL,
         'it has no comment',
         true)
) AS r (suite, "check", ok, detail, asked)
WHERE r.asked
ORDER BY 1, 2;


-- The two indexes. Unlike those of 001 they are asked for by name: 002 promises the names.

WITH wanted (idx, predicate, meaning) AS (
    VALUES
        ('idx_llm_providers_api_key_source',
         '(is_active|[(]is_active = true[)]|[(]is_active IS TRUE[)])',
         'active providers'),
        ('idx_llm_providers_has_db_key',
         '[(]encrypted_api_key IS NOT NULL[)]',
         'rows that hold a key')
),
found AS (
    SELECT
        w.*,
        i.indexrelid,
        i.indisvalid AND i.indisready AND i.indislive AS usable,
        pg_get_indexdef(i.indexrelid, 1, true) AS first_col,
        pg_get_expr(i.indpred, i.indrelid) AS expr
    FROM wanted w
    LEFT JOIN (pg_index i JOIN pg_class c ON c.oid = i.indexrelid)
        ON i.indrelid = to_regclass('llm_providers') AND c.relname = w.idx
)
SELECT
    r.suite,
    r."check",
    coalesce(r.ok, false) AS ok,
    CASE WHEN NOT coalesce(r.ok, false) THEN
        CASE WHEN indexrelid IS NULL THEN 'there is no such index' ELSE r.detail END
    END AS detail,
    true AS effect
FROM found
CROSS JOIN LATERAL (
    VALUES
        ('indexes',
         format('index %s exists', idx),
         indexrelid IS NOT NULL,
         NULL,
         true),
        ('index validity',
         format('index %s is valid', idx),
         usable,
         'it is invalid, as a failed CREATE INDEX CONCURRENTLY leaves one; drop it and make it again',
         true),
        ('index predicates',
         format('index %s covers %s only', idx, meaning),
         expr ~ ('^' || predicate || '$'),
         coalesce('its predicate is ' || expr, 'it covers every row'),
         true),
        ('index columns',
         format('index %s is on api_key_source', idx),
         first_col = 'api_key_source',
         'it is on ' || first_col,
         idx = 'idx_llm_providers_api_key_source'),
        ('index columns',
         format('index %s does not hold the key itself', idx),
         first_col <> 'encrypted_api_key',
         'it is on encrypted_api_key: a long key would not fit, and could not be stored',
         idx = 'idx_llm_providers_has_db_key')
) AS r (suite, "check", ok, detail, asked)
WHERE r.asked
ORDER BY 1, 2;


-- Every row says where its key comes from, whether it was there before 002 or came later.

SELECT
    'existing rows' AS suite,
    'every provider has an api_key_source' AS "check",
    count(*) = 0 AS ok,
    CASE WHEN count(*) > 0 THEN format('%s without, such as %s', count(*), min(provider_slug)) END AS detail,
    true AS effect
FROM llm_providers
WHERE api_key_source IS NULL;


-- A later row may have no status: 002 gives one to the rows of its day only. So this looks at rows
-- only inside the transaction that adds the column, where all of them are of that day.

WITH added (now) AS (
    SELECT EXISTS (
        SELECT
        FROM pg_attribute a
        WHERE a.attrelid = to_regclass('llm_providers')
            AND a.attname = 'api_key_test_status'
            -- xmin is the low half of the transaction's number
            AND a.xmin::text::bigint = pg_current_xact_id_if_assigned()::text::bigint % 4294967296
    )
)
SELECT
    'existing rows' AS suite,
    'providers that were there before have a test status' AS "check",
    count(*) = 0 AS ok,
    CASE WHEN count(*) > 0 THEN format('%s without, such as %s', count(*), min(p.provider_slug)) END AS detail,
    true AS effect
FROM llm_providers p
WHERE (SELECT now FROM added) AND p.api_key_test_status IS NULL;


-- What the application asks, as it asks: reads every new column, and must not fail.

SELECT
    'application queries' AS suite,
    'active providers can be counted by the source of their key' AS "check",
    count(*) >= 0 AS ok,
    NULL::text AS detail,
    true AS effect
FROM (
    SELECT api_key_source, api_key_test_status, max(api_key_last_tested)
    FROM llm_providers
    WHERE is_active
    GROUP BY api_key_source, api_key_test_status
) AS q;

SELECT
    'application queries' AS suite,
    'stored keys can be listed by age' AS "check",
    count(*) >= 0 AS ok,
    NULL::text AS detail,
    true AS effect
FROM (
    SELECT provider_slug
    FROM llm_providers
    WHERE encrypted_api_key IS NOT NULL
        AND api_key_updated_at < CURRENT_TIMESTAMP - interval '90 days'
) AS q;


-- What 001 made on this table and 002 must not have harmed. effect = false throughout.

SELECT
    'kept from 001' AS suite,
    'column llm_providers.is_active is boolean' AS "check",
    count(*) = 1 AS ok,
    CASE WHEN count(*) <> 1 THEN 'it is missing or of another type' END AS detail,
    false AS effect
FROM pg_attribute
WHERE attrelid = to_regclass('llm_providers')
    AND attname = 'is_active'
    AND atttypid = 'boolean'::regtype
    AND NOT attisdropped;

SELECT
    'kept from 001' AS suite,
    'provider_slug is still unique' AS "check",
    count(*) > 0 AS ok,
    CASE WHEN count(*) = 0 THEN 'no valid unique index on it alone' END AS detail,
    false AS effect
FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = to_regclass('llm_providers')
    AND a.attname = 'provider_slug'
    AND i.indnkeyatts = 1
    AND i.indisunique
    AND i.indisvalid
    AND i.indpred IS NULL;

SELECT
    'kept from 001' AS suite,
    'a trigger still keeps updated_at current' AS "check",
    count(*) > 0 AS ok,
    CASE WHEN count(*) = 0 THEN 'no enabled BEFORE UPDATE row trigger sets updated_at' END AS detail,
    false AS effect
FROM pg_trigger t
JOIN pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = to_regclass('llm_providers')
    AND NOT t.tgisinternal
    AND t.tgenabled IN ('O', 'A')
    AND t.tgtype & 19 = 19   -- for each row (1), before (2), update (16)
    AND t.tgattr::text = ''  -- of any column
    AND (p.prosrc ILIKE '%updated_at%' OR encode(t.tgargs, 'escape') LIKE '%updated_at%');

SELECT
    'kept from 001' AS suite,
    'every model still has its provider' AS "check",
    count(*) = 0 AS ok,
    CASE WHEN count(*) > 0 THEN format('%s models without one', count(*)) END AS detail,
    false AS effect
FROM llm_models m
WHERE NOT EXISTS (SELECT FROM llm_providers p WHERE p.id = m.provider_id);
