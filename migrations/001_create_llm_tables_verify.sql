-- Is 001 in this database? Asks for what the application needs, wherever it is found on the search_path.
--
-- A database that was migrated by hand has other names for its indexes, constraints and triggers,
-- and may have more columns, tables and indexes. So these are found by what they are, never by name
-- or order, and what is there in addition does not count. Rows are not asked for: the operator may
-- have removed a provider that 001 seeded.
--
-- Nothing here can hold before 001 has run, so every check keeps the default, effect = true.


WITH wanted (tbl) AS (
    VALUES
        ('llm_providers'),
        ('llm_models'),
        ('user_api_keys'),
        ('llm_routing_rules'),
        ('llm_usage_logs')
)
SELECT
    'tables' AS suite,
    format('table %s exists', w.tbl) AS "check",
    coalesce(c.relkind IN ('r', 'p'), false) AS ok,
    CASE
        WHEN c.oid IS NULL THEN 'there is no such table on the search_path'
        WHEN c.relkind NOT IN ('r', 'p') THEN 'there is something of this name, but it is no table'
    END AS detail
FROM wanted w
LEFT JOIN pg_class c ON c.oid = to_regclass(w.tbl)
ORDER BY 2;


-- Columns: type, NOT NULL and default. <now> is the current time and <sequence> a serial or an
-- identity, in whichever way they are spelled. A varchar may be longer than asked for.

WITH wanted (tbl, col, type, not_null, dflt) AS (
    VALUES
        ('llm_providers', 'id', 'integer', true, '<sequence>'),
        ('llm_providers', 'provider_name', 'varchar(100)', true, NULL),
        ('llm_providers', 'provider_slug', 'varchar(100)', true, NULL),
        ('llm_providers', 'display_name', 'varchar(200)', true, NULL),
        ('llm_providers', 'description', 'text', false, NULL),
        ('llm_providers', 'base_url', 'varchar(500)', false, NULL),
        ('llm_providers', 'auth_type', 'varchar(50)', true, 'api_key'),
        ('llm_providers', 'supports_streaming', 'boolean', false, 'true'),
        ('llm_providers', 'supports_function_calling', 'boolean', false, 'false'),
        ('llm_providers', 'supports_vision', 'boolean', false, 'false'),
        ('llm_providers', 'rate_limit_rpm', 'integer', false, NULL),
        ('llm_providers', 'rate_limit_tpm', 'integer', false, NULL),
        ('llm_providers', 'rate_limit_rpd', 'integer', false, NULL),
        ('llm_providers', 'is_active', 'boolean', false, 'true'),
        ('llm_providers', 'is_byok_supported', 'boolean', false, 'true'),
        ('llm_providers', 'is_system_provider', 'boolean', false, 'false'),
        ('llm_providers', 'api_key_format', 'varchar(100)', false, NULL),
        ('llm_providers', 'documentation_url', 'varchar(500)', false, NULL),
        ('llm_providers', 'pricing_url', 'varchar(500)', false, NULL),
        ('llm_providers', 'status_page_url', 'varchar(500)', false, NULL),
        ('llm_providers', 'health_status', 'varchar(50)', false, 'unknown'),
        ('llm_providers', 'health_last_checked', 'timestamp', false, NULL),
        ('llm_providers', 'health_response_time_ms', 'integer', false, NULL),
        ('llm_providers', 'min_tier_required', 'varchar(50)', false, 'free'),
        ('llm_providers', 'created_at', 'timestamp', true, '<now>'),
        ('llm_providers', 'updated_at', 'timestamp', true, '<now>'),

        ('llm_models', 'id', 'integer', true, '<sequence>'),
        ('llm_models', 'provider_id', 'integer', true, NULL),
        ('llm_models', 'model_name', 'varchar(200)', true, NULL),
        ('llm_models', 'model_id', 'varchar(200)', true, NULL),
        ('llm_models', 'display_name', 'varchar(200)', true, NULL),
        ('llm_models', 'description', 'text', false, NULL),
        ('llm_models', 'max_tokens', 'integer', true, '4096'),
        ('llm_models', 'context_window', 'integer', true, '8192'),
        ('llm_models', 'supports_streaming', 'boolean', false, 'true'),
        ('llm_models', 'supports_function_calling', 'boolean', false, 'false'),
        ('llm_models', 'supports_vision', 'boolean', false, 'false'),
        ('llm_models', 'supports_json_mode', 'boolean', false, 'false'),
        ('llm_models', 'cost_per_1m_input_tokens', 'numeric(10,6)', false, NULL),
        ('llm_models', 'cost_per_1m_output_tokens', 'numeric(10,6)', false, NULL),
        ('llm_models', 'cost_per_1m_tokens_cached', 'numeric(10,6)', false, NULL),
        ('llm_models', 'power_level', 'varchar(50)', false, NULL),
        ('llm_models', 'power_level_priority', 'integer', false, '999'),
        ('llm_models', 'is_active', 'boolean', false, 'true'),
        ('llm_models', 'is_deprecated', 'boolean', false, 'false'),
        ('llm_models', 'deprecation_date', 'timestamp', false, NULL),
        ('llm_models', 'replacement_model_id', 'integer', false, NULL),
        ('llm_models', 'min_tier_required', 'varchar(50)', false, 'free'),
        ('llm_models', 'avg_latency_ms', 'integer', false, NULL),
        ('llm_models', 'avg_tokens_per_second', 'numeric(10,2)', false, NULL),
        ('llm_models', 'model_version', 'varchar(50)', false, NULL),
        ('llm_models', 'release_date', 'timestamp', false, NULL),
        ('llm_models', 'training_cutoff', 'varchar(100)', false, NULL),
        ('llm_models', 'created_at', 'timestamp', true, '<now>'),
        ('llm_models', 'updated_at', 'timestamp', true, '<now>'),

        ('user_api_keys', 'id', 'integer', true, '<sequence>'),
        ('user_api_keys', 'user_id', 'varchar(255)', true, NULL),
        ('user_api_keys', 'provider_id', 'integer', true, NULL),
        ('user_api_keys', 'key_name', 'varchar(200)', false, NULL),
        ('user_api_keys', 'encrypted_api_key', 'text', true, NULL),
        ('user_api_keys', 'key_prefix', 'varchar(20)', false, NULL),
        ('user_api_keys', 'key_suffix', 'varchar(20)', false, NULL),
        ('user_api_keys', 'is_active', 'boolean', false, 'true'),
        ('user_api_keys', 'is_validated', 'boolean', false, 'false'),
        ('user_api_keys', 'validation_error', 'text', false, NULL),
        ('user_api_keys', 'last_validated_at', 'timestamp', false, NULL),
        ('user_api_keys', 'total_requests', 'integer', false, '0'),
        ('user_api_keys', 'total_tokens', 'bigint', false, '0'),
        ('user_api_keys', 'total_cost_usd', 'numeric(10,6)', false, '0'),
        ('user_api_keys', 'last_used_at', 'timestamp', false, NULL),
        ('user_api_keys', 'created_ip', 'varchar(100)', false, NULL),
        ('user_api_keys', 'last_rotated_at', 'timestamp', false, NULL),
        ('user_api_keys', 'created_at', 'timestamp', true, '<now>'),
        ('user_api_keys', 'updated_at', 'timestamp', true, '<now>'),

        ('llm_routing_rules', 'id', 'integer', true, '<sequence>'),
        ('llm_routing_rules', 'model_id', 'integer', true, NULL),
        ('llm_routing_rules', 'power_level', 'varchar(50)', true, NULL),
        ('llm_routing_rules', 'user_tier', 'varchar(50)', true, NULL),
        ('llm_routing_rules', 'task_type', 'varchar(50)', false, NULL),
        ('llm_routing_rules', 'priority', 'integer', false, '100'),
        ('llm_routing_rules', 'weight', 'integer', false, '100'),
        ('llm_routing_rules', 'min_tokens', 'integer', false, NULL),
        ('llm_routing_rules', 'max_tokens', 'integer', false, NULL),
        ('llm_routing_rules', 'requires_byok', 'boolean', false, 'false'),
        ('llm_routing_rules', 'is_fallback', 'boolean', false, 'false'),
        ('llm_routing_rules', 'fallback_order', 'integer', false, '999'),
        ('llm_routing_rules', 'is_active', 'boolean', false, 'true'),
        ('llm_routing_rules', 'created_at', 'timestamp', true, '<now>'),
        ('llm_routing_rules', 'updated_at', 'timestamp', true, '<now>'),

        ('llm_usage_logs', 'id', 'integer', true, '<sequence>'),
        ('llm_usage_logs', 'user_id', 'varchar(255)', true, NULL),
        ('llm_usage_logs', 'provider_id', 'integer', false, NULL),
        ('llm_usage_logs', 'model_id', 'integer', false, NULL),
        ('llm_usage_logs', 'user_key_id', 'integer', false, NULL),
        ('llm_usage_logs', 'request_id', 'varchar(100)', false, NULL),
        ('llm_usage_logs', 'power_level', 'varchar(50)', false, NULL),
        ('llm_usage_logs', 'task_type', 'varchar(50)', false, NULL),
        ('llm_usage_logs', 'prompt_tokens', 'integer', false, '0'),
        ('llm_usage_logs', 'completion_tokens', 'integer', false, '0'),
        ('llm_usage_logs', 'total_tokens', 'integer', false, '0'),
        ('llm_usage_logs', 'cached_tokens', 'integer', false, '0'),
        ('llm_usage_logs', 'cost_input_usd', 'numeric(10,6)', false, '0'),
        ('llm_usage_logs', 'cost_output_usd', 'numeric(10,6)', false, '0'),
        ('llm_usage_logs', 'cost_total_usd', 'numeric(10,6)', false, '0'),
        ('llm_usage_logs', 'used_byok', 'boolean', false, 'false'),
        ('llm_usage_logs', 'latency_ms', 'integer', false, NULL),
        ('llm_usage_logs', 'tokens_per_second', 'numeric(10,2)', false, NULL),
        ('llm_usage_logs', 'status_code', 'integer', false, NULL),
        ('llm_usage_logs', 'error_message', 'text', false, NULL),
        ('llm_usage_logs', 'was_fallback', 'boolean', false, 'false'),
        ('llm_usage_logs', 'fallback_reason', 'varchar(200)', false, NULL),
        ('llm_usage_logs', 'lago_event_id', 'varchar(100)', false, NULL),
        ('llm_usage_logs', 'billed_at', 'timestamp', false, NULL),
        ('llm_usage_logs', 'request_ip', 'varchar(100)', false, NULL),
        ('llm_usage_logs', 'user_agent', 'varchar(500)', false, NULL),
        ('llm_usage_logs', 'session_id', 'varchar(100)', false, NULL),
        ('llm_usage_logs', 'created_at', 'timestamp', true, '<now>')
),
found AS (
    SELECT
        w.*,
        a.attname,
        a.attnotnull,
        a.attidentity,
        a.atttypmod,
        -- as format_type prints it, with the two long names shortened
        replace(replace(format_type(a.atttypid, a.atttypmod),
            'character varying', 'varchar'), ' without time zone', '') AS found_type,
        pg_get_expr(d.adbin, d.adrelid) AS expr
    FROM wanted w
    LEFT JOIN pg_attribute a
        ON a.attrelid = to_regclass(w.tbl) AND a.attname = w.col AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d
        ON d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.attgenerated = ''
),
compared AS (
    SELECT
        found.*,
        CASE
            WHEN attidentity <> '' OR expr LIKE 'nextval(%' THEN '<sequence>'
            WHEN type = 'timestamp'
                AND expr ~* 'current_timestamp|localtimestamp|now[(][)]|_timestamp[(][)]'
                THEN '<now>'
            -- 'api_key'::character varying(50) is api_key, and (0.0)::numeric is 0
            ELSE regexp_replace(
                btrim(regexp_replace(expr, '::[a-z ]+([(][0-9,]+[)])?', '', 'g'), '()'''),
                '[.]0+$', '')
        END AS found_dflt,
        found_type LIKE 'varchar%' AND type LIKE 'varchar(%'
            -- atttypmod is -1 for a varchar without a length, else the length and 4
            AND (atttypmod = -1 OR atttypmod - 4 > substring(type FROM '[0-9]+')::integer) AS longer
    FROM found
)
SELECT
    r.suite,
    r."check",
    coalesce(r.ok, false) AS ok,
    CASE WHEN NOT coalesce(r.ok, false) THEN
        CASE WHEN attname IS NULL THEN 'there is no such column' ELSE r.detail END
    END AS detail
FROM compared
CROSS JOIN LATERAL (
    VALUES
        ('column types',
         format('column %s.%s is %s', tbl, col, type),
         found_type = type OR longer,
         'it is ' || found_type,
         true),
        ('not null',
         format('column %s.%s is not null', tbl, col),
         attnotnull,
         'it takes null',
         not_null),
        ('defaults',
         format('column %s.%s has the default %s', tbl, col, dflt),
         found_dflt = dflt,
         coalesce('its default is ' || expr, 'it has no default'),
         dflt IS NOT NULL)
) AS r (suite, "check", ok, detail, asked)
WHERE r.asked
ORDER BY 1, 2;


-- Keys and indexes. The index of a key serves as an index too, and so does one that goes on with
-- more columns; one that is partial, or that a failed CREATE INDEX CONCURRENTLY left behind, does not.

WITH wanted (kind, tbl, cols) AS (
    VALUES
        ('primary key', 'llm_providers', ARRAY['id']),
        ('primary key', 'llm_models', ARRAY['id']),
        ('primary key', 'user_api_keys', ARRAY['id']),
        ('primary key', 'llm_routing_rules', ARRAY['id']),
        ('primary key', 'llm_usage_logs', ARRAY['id']),

        ('unique key', 'llm_providers', ARRAY['provider_name']),
        ('unique key', 'llm_providers', ARRAY['provider_slug']),
        ('unique key', 'llm_models', ARRAY['provider_id', 'model_id']),
        ('unique key', 'user_api_keys', ARRAY['user_id', 'provider_id']),
        ('unique key', 'llm_usage_logs', ARRAY['request_id']),
        ('unique key', 'llm_usage_logs', ARRAY['lago_event_id']),

        ('index', 'llm_providers', ARRAY['is_active']),
        ('index', 'llm_providers', ARRAY['provider_slug']),
        ('index', 'llm_providers', ARRAY['health_status', 'is_active']),
        ('index', 'llm_models', ARRAY['provider_id', 'is_active']),
        ('index', 'llm_models', ARRAY['power_level', 'is_active']),
        ('index', 'llm_models', ARRAY['model_name']),
        ('index', 'user_api_keys', ARRAY['user_id', 'is_active']),
        ('index', 'user_api_keys', ARRAY['provider_id']),
        ('index', 'user_api_keys', ARRAY['user_id', 'provider_id', 'is_active']),
        ('index', 'llm_routing_rules', ARRAY['power_level', 'user_tier', 'task_type', 'is_active']),
        ('index', 'llm_routing_rules', ARRAY['priority', 'is_active']),
        ('index', 'llm_routing_rules', ARRAY['model_id', 'is_active']),
        ('index', 'llm_usage_logs', ARRAY['user_id', 'created_at desc']),
        ('index', 'llm_usage_logs', ARRAY['provider_id', 'created_at desc']),
        ('index', 'llm_usage_logs', ARRAY['cost_total_usd', 'created_at desc']),
        ('index', 'llm_usage_logs', ARRAY['request_id']),
        ('index', 'llm_usage_logs', ARRAY['lago_event_id'])
),
found AS (
    SELECT
        i.indrelid,
        i.indisprimary,
        i.indisunique AND i.indimmediate AS is_unique,
        (
            -- the lowest bit of indoption is set for DESC; an expression has no attname and stays null
            SELECT array_agg(a.attname || CASE WHEN i.indoption[k.n - 1] & 1 = 1 THEN ' desc' ELSE '' END ORDER BY k.n)
            FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, n)
            LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE k.n <= i.indnkeyatts
        ) AS cols
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am am ON am.oid = c.relam
    WHERE i.indrelid IN (SELECT to_regclass(tbl) FROM wanted)
        AND i.indisvalid
        AND i.indpred IS NULL
        AND am.amname = 'btree'
),
compared AS (
    SELECT
        w.*,
        EXISTS (
            SELECT FROM found f
            WHERE f.indrelid = to_regclass(w.tbl)
                AND CASE w.kind
                    WHEN 'primary key' THEN f.indisprimary AND f.cols = w.cols
                    WHEN 'unique key' THEN f.is_unique AND f.cols @> w.cols AND f.cols <@ w.cols
                    ELSE f.cols[1:cardinality(w.cols)] = w.cols
                END
        ) AS ok
    FROM wanted w
)
SELECT
    CASE kind WHEN 'primary key' THEN 'primary keys' WHEN 'unique key' THEN 'unique keys' ELSE 'indexes' END AS suite,
    format('%s %s (%s)', tbl, kind, array_to_string(cols, ', ')) AS "check",
    ok,
    CASE WHEN NOT ok THEN 'none that is valid, complete and on these columns' END AS detail
FROM compared
ORDER BY 1, 2;


-- Foreign keys. on_delete as pg_constraint.confdeltype has it: c is CASCADE, n is SET NULL;
-- null where the application does not mind.

WITH wanted (tbl, col, ref, on_delete) AS (
    VALUES
        ('llm_models', 'provider_id', 'llm_providers', 'c'),
        ('llm_models', 'replacement_model_id', 'llm_models', NULL),
        ('user_api_keys', 'provider_id', 'llm_providers', 'c'),
        ('llm_routing_rules', 'model_id', 'llm_models', 'c'),
        ('llm_usage_logs', 'provider_id', 'llm_providers', 'n'),
        ('llm_usage_logs', 'model_id', 'llm_models', 'n'),
        ('llm_usage_logs', 'user_key_id', 'user_api_keys', 'n')
),
compared AS (
    SELECT
        w.*,
        count(f.oid) > 0 AS ok,
        string_agg(pg_get_constraintdef(o.oid), '; ' ORDER BY o.oid) AS instead
    FROM wanted w
    LEFT JOIN pg_attribute a
        ON a.attrelid = to_regclass(w.tbl) AND a.attname = w.col AND NOT a.attisdropped
    LEFT JOIN pg_attribute r
        ON r.attrelid = to_regclass(w.ref) AND r.attname = 'id' AND NOT r.attisdropped
    -- o is any foreign key of that column, f the one asked for
    LEFT JOIN pg_constraint o
        ON o.contype = 'f' AND o.conrelid = a.attrelid AND o.conkey = ARRAY[a.attnum]
    LEFT JOIN pg_constraint f
        ON f.oid = o.oid AND f.confrelid = r.attrelid AND f.confkey = ARRAY[r.attnum]
        AND f.confdeltype = coalesce(w.on_delete, f.confdeltype::text)::"char"
    GROUP BY w.tbl, w.col, w.ref, w.on_delete
)
SELECT
    'foreign keys' AS suite,
    format('%s.%s references %s%s', tbl, col, ref,
        CASE on_delete WHEN 'c' THEN ' on delete cascade' WHEN 'n' THEN ' on delete set null' END) AS "check",
    ok,
    CASE WHEN NOT ok THEN coalesce('it is ' || instead, 'there is no such foreign key') END AS detail
FROM compared
ORDER BY 1, 2;


-- Triggers: enabled, BEFORE UPDATE, for each row, whichever column changes, and the function sets
-- updated_at (or is told to, as the extension moddatetime is).

WITH wanted (tbl) AS (
    VALUES
        ('llm_providers'),
        ('llm_models'),
        ('user_api_keys'),
        ('llm_routing_rules')
),
compared AS (
    SELECT
        w.tbl,
        EXISTS (
            SELECT
            FROM pg_trigger t
            JOIN pg_proc p ON p.oid = t.tgfoid
            WHERE t.tgrelid = to_regclass(w.tbl)
                AND NOT t.tgisinternal
                AND t.tgenabled IN ('O', 'A')
                AND t.tgtype & 1 = 1     -- for each row
                AND t.tgtype & 2 = 2     -- before
                AND t.tgtype & 16 = 16   -- update
                AND t.tgattr::text = ''  -- of any column
                AND (p.prosrc ILIKE '%updated_at%' OR encode(t.tgargs, 'escape') LIKE '%updated_at%')
        ) AS ok
    FROM wanted w
)
SELECT
    'triggers' AS suite,
    format('a trigger keeps %s.updated_at current', tbl) AS "check",
    ok,
    CASE WHEN NOT ok THEN 'no enabled BEFORE UPDATE row trigger sets updated_at' END AS detail
FROM compared
ORDER BY 1, 2;
