-- 001: the five tables behind Ops-Center's LLM routing, BYOK keys and usage billing.
--
-- Everything is created plainly, without IF NOT EXISTS: a table of the same name that is already
-- there belongs to somebody else, and this file must stop rather than build on it.
--
-- A unique constraint brings its own index. So the lookups by provider_slug, request_id and
-- lago_event_id need no further index, and none is made.

-- One function serves every table below. It has a name of its own, and no OR REPLACE, because
-- other tools in this shared database own functions with names like update_updated_at_column().
CREATE FUNCTION llm_tables_set_updated_at() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    NEW.updated_at := CURRENT_TIMESTAMP;
    RETURN NEW;
END
$$;


-- Who serves models: OpenAI, Anthropic, …

CREATE TABLE llm_providers (
    id                        serial,
    provider_name             varchar(100) NOT NULL,
    provider_slug             varchar(100) NOT NULL,
    display_name              varchar(200) NOT NULL,
    description               text,
    base_url                  varchar(500),
    auth_type                 varchar(50)  NOT NULL DEFAULT 'api_key',
    supports_streaming        boolean      DEFAULT true,
    supports_function_calling boolean      DEFAULT false,
    supports_vision           boolean      DEFAULT false,
    rate_limit_rpm            integer,     -- requests a minute
    rate_limit_tpm            integer,     -- tokens a minute
    rate_limit_rpd            integer,     -- requests a day
    is_active                 boolean      DEFAULT true,
    is_byok_supported         boolean      DEFAULT true,
    is_system_provider        boolean      DEFAULT false,
    api_key_format            varchar(100),
    documentation_url         varchar(500),
    pricing_url               varchar(500),
    status_page_url           varchar(500),
    health_status             varchar(50)  DEFAULT 'unknown',
    health_last_checked       timestamp,
    health_response_time_ms   integer,
    min_tier_required         varchar(50)  DEFAULT 'free',
    created_at                timestamp    NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at                timestamp    NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT llm_providers_pkey PRIMARY KEY (id),
    CONSTRAINT llm_providers_provider_name_key UNIQUE (provider_name),
    CONSTRAINT llm_providers_provider_slug_key UNIQUE (provider_slug)
);

CREATE INDEX idx_llm_providers_is_active ON llm_providers (is_active);
CREATE INDEX idx_llm_providers_health_status_is_active ON llm_providers (health_status, is_active);

CREATE TRIGGER llm_providers_set_updated_at
    BEFORE UPDATE ON llm_providers
    FOR EACH ROW EXECUTE FUNCTION llm_tables_set_updated_at();


-- What they serve, and at which price.

CREATE TABLE llm_models (
    id                        serial,
    provider_id               integer      NOT NULL,
    model_name                varchar(200) NOT NULL,
    model_id                  varchar(200) NOT NULL,
    display_name              varchar(200) NOT NULL,
    description               text,
    max_tokens                integer      NOT NULL DEFAULT 4096,
    context_window            integer      NOT NULL DEFAULT 8192,
    supports_streaming        boolean      DEFAULT true,
    supports_function_calling boolean      DEFAULT false,
    supports_vision           boolean      DEFAULT false,
    supports_json_mode        boolean      DEFAULT false,
    cost_per_1m_input_tokens  numeric(10,6),
    cost_per_1m_output_tokens numeric(10,6),
    cost_per_1m_tokens_cached numeric(10,6),
    power_level               varchar(50),
    power_level_priority      integer      DEFAULT 999,
    is_active                 boolean      DEFAULT true,
    is_deprecated             boolean      DEFAULT false,
    deprecation_date          timestamp,
    replacement_model_id      integer,
    min_tier_required         varchar(50)  DEFAULT 'free',
    avg_latency_ms            integer,
    avg_tokens_per_second     numeric(10,2),
    model_version             varchar(50),
    release_date              timestamp,
    training_cutoff           varchar(100),
    created_at                timestamp    NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at                timestamp    NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT llm_models_pkey PRIMARY KEY (id),
    -- model_id is the provider's own name for the model: unique for that provider only.
    CONSTRAINT llm_models_provider_id_model_id_key UNIQUE (provider_id, model_id),
    CONSTRAINT llm_models_provider_id_fkey
        FOREIGN KEY (provider_id) REFERENCES llm_providers (id) ON DELETE CASCADE,
    -- No delete action: a model that others name as their replacement cannot just vanish.
    CONSTRAINT llm_models_replacement_model_id_fkey
        FOREIGN KEY (replacement_model_id) REFERENCES llm_models (id)
);

CREATE INDEX idx_llm_models_provider_id_is_active ON llm_models (provider_id, is_active);
CREATE INDEX idx_llm_models_power_level_is_active ON llm_models (power_level, is_active);
CREATE INDEX idx_llm_models_model_name ON llm_models (model_name);

CREATE TRIGGER llm_models_set_updated_at
    BEFORE UPDATE ON llm_models
    FOR EACH ROW EXECUTE FUNCTION llm_tables_set_updated_at();


-- Keys that users bring themselves (BYOK), one for each provider.

CREATE TABLE user_api_keys (
    id                serial,
    user_id           varchar(255) NOT NULL,
    provider_id       integer      NOT NULL,
    key_name          varchar(200),
    encrypted_api_key text         NOT NULL,
    key_prefix        varchar(20),
    key_suffix        varchar(20),
    is_active         boolean      DEFAULT true,
    is_validated      boolean      DEFAULT false,
    validation_error  text,
    last_validated_at timestamp,
    total_requests    integer      DEFAULT 0,
    total_tokens      bigint       DEFAULT 0,
    total_cost_usd    numeric(10,6) DEFAULT 0,
    last_used_at      timestamp,
    created_ip        varchar(100),
    last_rotated_at   timestamp,
    created_at        timestamp    NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at        timestamp    NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT user_api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT user_api_keys_user_id_provider_id_key UNIQUE (user_id, provider_id),
    CONSTRAINT user_api_keys_provider_id_fkey
        FOREIGN KEY (provider_id) REFERENCES llm_providers (id) ON DELETE CASCADE
);

CREATE INDEX idx_user_api_keys_user_id_is_active ON user_api_keys (user_id, is_active);
CREATE INDEX idx_user_api_keys_provider_id ON user_api_keys (provider_id);
CREATE INDEX idx_user_api_keys_user_id_provider_id_is_active ON user_api_keys (user_id, provider_id, is_active);

CREATE TRIGGER user_api_keys_set_updated_at
    BEFORE UPDATE ON user_api_keys
    FOR EACH ROW EXECUTE FUNCTION llm_tables_set_updated_at();


-- Which model answers for a power level and a user's tier.

CREATE TABLE llm_routing_rules (
    id             serial,
    model_id       integer     NOT NULL,
    power_level    varchar(50) NOT NULL,
    user_tier      varchar(50) NOT NULL,
    task_type      varchar(50),
    priority       integer     DEFAULT 100,
    weight         integer     DEFAULT 100,
    min_tokens     integer,
    max_tokens     integer,
    requires_byok  boolean     DEFAULT false,
    is_fallback    boolean     DEFAULT false,
    fallback_order integer     DEFAULT 999,
    is_active      boolean     DEFAULT true,
    created_at     timestamp   NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at     timestamp   NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT llm_routing_rules_pkey PRIMARY KEY (id),
    CONSTRAINT llm_routing_rules_model_id_fkey
        FOREIGN KEY (model_id) REFERENCES llm_models (id) ON DELETE CASCADE
);

-- The whole column list would be exactly 63 bytes, as long as a name can be; hence the short form.
CREATE INDEX idx_llm_routing_rules_level_tier_task_active
    ON llm_routing_rules (power_level, user_tier, task_type, is_active);
CREATE INDEX idx_llm_routing_rules_priority_is_active ON llm_routing_rules (priority, is_active);
CREATE INDEX idx_llm_routing_rules_model_id_is_active ON llm_routing_rules (model_id, is_active);

CREATE TRIGGER llm_routing_rules_set_updated_at
    BEFORE UPDATE ON llm_routing_rules
    FOR EACH ROW EXECUTE FUNCTION llm_tables_set_updated_at();


-- One row a request, for statistics and billing. Rows are written once, so there is no updated_at.
-- They outlive what they point at: deleting a provider, a model or a key must not delete its bills.

CREATE TABLE llm_usage_logs (
    id                serial,
    user_id           varchar(255) NOT NULL,
    provider_id       integer,
    model_id          integer,
    user_key_id       integer,
    request_id        varchar(100),
    power_level       varchar(50),
    task_type         varchar(50),
    prompt_tokens     integer      DEFAULT 0,
    completion_tokens integer      DEFAULT 0,
    total_tokens      integer      DEFAULT 0,
    cached_tokens     integer      DEFAULT 0,
    cost_input_usd    numeric(10,6) DEFAULT 0,
    cost_output_usd   numeric(10,6) DEFAULT 0,
    cost_total_usd    numeric(10,6) DEFAULT 0,
    used_byok         boolean      DEFAULT false,
    latency_ms        integer,
    tokens_per_second numeric(10,2),
    status_code       integer,
    error_message     text,
    was_fallback      boolean      DEFAULT false,
    fallback_reason   varchar(200),
    lago_event_id     varchar(100),
    billed_at         timestamp,
    request_ip        varchar(100),
    user_agent        varchar(500),
    session_id        varchar(100),
    created_at        timestamp    NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT llm_usage_logs_pkey PRIMARY KEY (id),
    CONSTRAINT llm_usage_logs_request_id_key UNIQUE (request_id),
    CONSTRAINT llm_usage_logs_lago_event_id_key UNIQUE (lago_event_id),
    CONSTRAINT llm_usage_logs_provider_id_fkey
        FOREIGN KEY (provider_id) REFERENCES llm_providers (id) ON DELETE SET NULL,
    CONSTRAINT llm_usage_logs_model_id_fkey
        FOREIGN KEY (model_id) REFERENCES llm_models (id) ON DELETE SET NULL,
    CONSTRAINT llm_usage_logs_user_key_id_fkey
        FOREIGN KEY (user_key_id) REFERENCES user_api_keys (id) ON DELETE SET NULL
);

CREATE INDEX idx_llm_usage_logs_user_id_created_at ON llm_usage_logs (user_id, created_at DESC);
CREATE INDEX idx_llm_usage_logs_provider_id_created_at ON llm_usage_logs (provider_id, created_at DESC);
CREATE INDEX idx_llm_usage_logs_cost_total_usd_created_at ON llm_usage_logs (cost_total_usd, created_at DESC);


-- The providers every installation starts with. A slug that is there already keeps its row.

INSERT INTO llm_providers (
    provider_name, provider_slug, display_name, description,
    base_url, supports_function_calling, supports_vision, api_key_format,
    documentation_url, pricing_url, status_page_url
)
VALUES
    ('OpenAI', 'openai', 'OpenAI', 'GPT and o-series models',
     'https://api.openai.com/v1', true, true, 'sk-...',
     'https://platform.openai.com/docs', 'https://openai.com/api/pricing', 'https://status.openai.com'),
    ('Anthropic', 'anthropic', 'Anthropic', 'Claude models',
     'https://api.anthropic.com/v1', true, true, 'sk-ant-...',
     'https://docs.anthropic.com', 'https://www.anthropic.com/pricing', 'https://status.anthropic.com'),
    ('Google', 'google', 'Google AI', 'Gemini models',
     'https://generativelanguage.googleapis.com/v1beta', true, true, 'AIza...',
     'https://ai.google.dev/gemini-api/docs', 'https://ai.google.dev/gemini-api/docs/pricing',
     'https://status.cloud.google.com'),
    ('OpenRouter', 'openrouter', 'OpenRouter', 'Many providers behind one key',
     'https://openrouter.ai/api/v1', true, true, 'sk-or-...',
     'https://openrouter.ai/docs', 'https://openrouter.ai/models', 'https://status.openrouter.ai'),
    ('Together', 'together', 'Together AI', 'Hosted open models',
     'https://api.together.xyz/v1', true, true, NULL,
     'https://docs.together.ai', 'https://www.together.ai/pricing', 'https://status.together.ai'),
    ('Groq', 'groq', 'Groq', 'Open models on low-latency hardware',
     'https://api.groq.com/openai/v1', true, false, 'gsk_...',
     'https://console.groq.com/docs', 'https://groq.com/pricing', 'https://groqstatus.com'),
    ('Fireworks', 'fireworks', 'Fireworks AI', 'Hosted open models',
     'https://api.fireworks.ai/inference/v1', true, false, 'fw_...',
     'https://docs.fireworks.ai', 'https://fireworks.ai/pricing', 'https://status.fireworks.ai')
ON CONFLICT (provider_slug) DO NOTHING;
