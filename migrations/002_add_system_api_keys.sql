-- 002: keys that the operator stores for the whole system, one for each provider.
--
-- Safe to run again (`force`) and over columns that somebody began to add by hand: what is missing
-- is added, and the verify file, which runs in the same transaction, refuses what has another shape.
--
-- llm_providers is locked from the first statement to the commit, so each one is short. ADD COLUMN
-- with a constant default rewrites nothing and gives existing rows their value without touching
-- them: no trigger fires, and updated_at stays as it was.

ALTER TABLE llm_providers
    ADD COLUMN IF NOT EXISTS encrypted_api_key   text,
    ADD COLUMN IF NOT EXISTS api_key_source      varchar(50) DEFAULT 'environment',
    ADD COLUMN IF NOT EXISTS api_key_updated_at  timestamp,
    ADD COLUMN IF NOT EXISTS api_key_last_tested timestamp,
    ADD COLUMN IF NOT EXISTS api_key_test_status varchar(20) DEFAULT 'untested';

ALTER TABLE llm_providers
    -- Repeated for a column that was there already, without its default.
    ALTER COLUMN api_key_source SET DEFAULT 'environment',
    -- 'untested' was meant for the rows of today; later ones get their status from the application.
    ALTER COLUMN api_key_test_status DROP DEFAULT;

COMMENT ON COLUMN llm_providers.encrypted_api_key IS
    'System API key, encrypted by the application; NULL when none is stored';
COMMENT ON COLUMN llm_providers.api_key_source IS
    'Where the key is taken from: environment (the default), database, or hybrid (database first)';
COMMENT ON COLUMN llm_providers.api_key_updated_at IS
    'When the stored key was last set or changed';
COMMENT ON COLUMN llm_providers.api_key_last_tested IS
    'When the key was last tried against the provider';
COMMENT ON COLUMN llm_providers.api_key_test_status IS
    'Result of that test: untested, valid, invalid or error';

-- The table has tens of rows, so these take milliseconds: not worth CONCURRENTLY, which would cost
-- the file its transaction. The flag for an active row is is_active; there is no column "enabled".
CREATE INDEX IF NOT EXISTS idx_llm_providers_api_key_source
    ON llm_providers (api_key_source)
    WHERE is_active;

-- On id, not on the key: what is asked is which rows hold one, and a ciphertext can outgrow an index entry.
CREATE INDEX IF NOT EXISTS idx_llm_providers_has_db_key
    ON llm_providers (id)
    WHERE encrypted_api_key IS NOT NULL;

-- Finds no row, and so leaves updated_at alone, unless a column was there already: added by hand
-- without its values, or by an earlier run of this file.
UPDATE llm_providers
SET api_key_source = coalesce(api_key_source, 'environment'),
    api_key_test_status = coalesce(api_key_test_status, 'untested')
WHERE api_key_source IS NULL
    OR api_key_test_status IS NULL;
