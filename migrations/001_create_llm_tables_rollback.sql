-- Undoes 001: drops the five tables and every row in them, children before parents.
--
-- IF EXISTS, so that a database that has lost one of them can still be rolled back. No CASCADE:
-- where somebody else's view or foreign key depends on a table, stop and let a person decide.

DROP TABLE IF EXISTS llm_usage_logs;
DROP TABLE IF EXISTS llm_routing_rules;
DROP TABLE IF EXISTS user_api_keys;
DROP TABLE IF EXISTS llm_models;
DROP TABLE IF EXISTS llm_providers;

-- The triggers went with their tables. On a database that was migrated by hand they called another
-- function; that one stays, since we cannot know who else uses it.
DROP FUNCTION IF EXISTS llm_tables_set_updated_at();
