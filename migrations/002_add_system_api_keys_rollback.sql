-- Undoes 002: drops its two indexes and five columns, and with them every stored system key.
-- IF EXISTS, so that a database that has lost one of them can still be rolled back.

DROP INDEX IF EXISTS idx_llm_providers_has_db_key;
DROP INDEX IF EXISTS idx_llm_providers_api_key_source;

ALTER TABLE llm_providers
    DROP COLUMN IF EXISTS api_key_test_status,
    DROP COLUMN IF EXISTS api_key_last_tested,
    DROP COLUMN IF EXISTS api_key_updated_at,
    DROP COLUMN IF EXISTS api_key_source,
    DROP COLUMN IF EXISTS encrypted_api_key;
