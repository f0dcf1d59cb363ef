-- What a rollback of 002 destroys and nobody can make again: the stored keys, still encrypted,
-- with what is known about them. provider_slug says where each belongs.

SELECT
    provider_slug,
    encrypted_api_key,
    api_key_source,
    api_key_updated_at,
    api_key_last_tested,
    api_key_test_status
FROM llm_providers
WHERE encrypted_api_key IS NOT NULL
ORDER BY provider_slug;
