-- What a rollback of 001 destroys: every row of the five tables.
-- SELECT * on purpose: a database may carry more columns than 001 made, and they are lost as well.

SELECT * FROM llm_providers ORDER BY id;
SELECT * FROM llm_models ORDER BY id;
SELECT * FROM user_api_keys ORDER BY id;
SELECT * FROM llm_routing_rules ORDER BY id;
SELECT * FROM llm_usage_logs ORDER BY id;
