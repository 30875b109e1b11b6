CREATE TABLE audit (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    at BIGINT NOT NULL,
    action TEXT NOT NULL,
    object_id TEXT NOT NULL,
    hub_id TEXT,
    project_id TEXT,
    key_id TEXT,
    member_id TEXT,
    address TEXT,
    request_id TEXT,
    details TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL,
    CONSTRAINT pk_audit PRIMARY KEY (seq),
    CONSTRAINT uq_audit_id UNIQUE (id),
    CONSTRAINT uq_audit_previous UNIQUE (previous)
);

CREATE INDEX ix_audit_project_id_seq ON audit (project_id, seq);

CREATE TABLE hubs (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    display_name TEXT NOT NULL,
    location TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    description TEXT DEFAULT '' NOT NULL,
    subscription TEXT DEFAULT '' NOT NULL,
    resource_group TEXT DEFAULT '' NOT NULL,
    ai_services TEXT,
    search TEXT,
    tags JSON,
    archived_at BIGINT,
    deleted_at BIGINT,
    CONSTRAINT pk_hubs PRIMARY KEY (seq),
    CONSTRAINT uq_hubs_id UNIQUE (id),
    CONSTRAINT uq_hubs_name UNIQUE (name)
);

CREATE TABLE locations (
    seq BIGSERIAL NOT NULL,
    name TEXT NOT NULL,
    about JSON NOT NULL,
    seen_at BIGINT NOT NULL,
    CONSTRAINT pk_locations PRIMARY KEY (seq),
    CONSTRAINT uq_locations_name UNIQUE (name)
);

CREATE TABLE members (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    email TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    kind TEXT DEFAULT 'person' NOT NULL,
    password_hash TEXT,
    issuer TEXT,
    subject TEXT,
    disabled_at BIGINT,
    last_sign_in_at BIGINT,
    CONSTRAINT pk_members PRIMARY KEY (seq),
    CONSTRAINT uq_members_id UNIQUE (id),
    CONSTRAINT uq_members_email UNIQUE (email)
);

CREATE UNIQUE INDEX ix_members_issuer_subject ON members (issuer, subject);

CREATE TABLE prices (
    seq BIGSERIAL NOT NULL,
    valid_from BIGINT NOT NULL,
    currency TEXT NOT NULL,
    training_tokens BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    device_hour BIGINT NOT NULL,
    storage_gb_day BIGINT DEFAULT '0' NOT NULL,
    CONSTRAINT pk_prices PRIMARY KEY (seq)
);

CREATE TABLE sign_in_attempts (
    seq BIGSERIAL NOT NULL,
    account TEXT NOT NULL,
    address TEXT NOT NULL,
    at BIGINT NOT NULL,
    CONSTRAINT pk_sign_in_attempts PRIMARY KEY (seq)
);

CREATE INDEX ix_sign_in_attempts_at ON sign_in_attempts (at);

CREATE TABLE custom_roles (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    hub_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    permissions JSON NOT NULL,
    created_at BIGINT NOT NULL,
    CONSTRAINT pk_custom_roles PRIMARY KEY (seq),
    CONSTRAINT uq_custom_roles_hub_id_name UNIQUE (hub_id, name),
    CONSTRAINT uq_custom_roles_id UNIQUE (id),
    CONSTRAINT fk_custom_roles_hub_id FOREIGN KEY(hub_id) REFERENCES hubs (id)
);

CREATE TABLE projects (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    hub_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    display_name TEXT DEFAULT '' NOT NULL,
    tags JSON,
    archived_at BIGINT,
    deleted_at BIGINT,
    CONSTRAINT pk_projects PRIMARY KEY (seq),
    CONSTRAINT uq_projects_hub_id_name UNIQUE (hub_id, name),
    CONSTRAINT uq_projects_id UNIQUE (id),
    CONSTRAINT fk_projects_hub_id FOREIGN KEY(hub_id) REFERENCES hubs (id)
);

CREATE TABLE api_keys (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    prefix TEXT NOT NULL,
    last_four TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    scope TEXT DEFAULT 'project' NOT NULL,
    member_id TEXT,
    permissions JSON,
    last_used_at BIGINT,
    deployment TEXT,
    CONSTRAINT pk_api_keys PRIMARY KEY (seq),
    CONSTRAINT uq_api_keys_id UNIQUE (id),
    CONSTRAINT fk_api_keys_project_id FOREIGN KEY(project_id) REFERENCES projects (id),
    CONSTRAINT uq_api_keys_sha256 UNIQUE (sha256),
    CONSTRAINT fk_api_keys_member_id FOREIGN KEY(member_id) REFERENCES members (id)
);

CREATE INDEX ix_api_keys_project_id_seq ON api_keys (project_id, seq);

CREATE TABLE assignments (
    seq BIGSERIAL NOT NULL,
    member_id TEXT NOT NULL,
    scope_id TEXT NOT NULL,
    hub_id TEXT NOT NULL,
    project_id TEXT,
    role TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    origin TEXT DEFAULT 'given' NOT NULL,
    CONSTRAINT pk_assignments PRIMARY KEY (seq),
    CONSTRAINT uq_assignments_member_id_scope_id UNIQUE (member_id, scope_id),
    CONSTRAINT fk_assignments_member_id FOREIGN KEY(member_id) REFERENCES members (id),
    CONSTRAINT fk_assignments_hub_id FOREIGN KEY(hub_id) REFERENCES hubs (id),
    CONSTRAINT fk_assignments_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE INDEX ix_assignments_scope_id ON assignments (scope_id);

CREATE TABLE deployments (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    base_model TEXT NOT NULL,
    adapter_key TEXT,
    status TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    error TEXT,
    revision INTEGER DEFAULT '1' NOT NULL,
    canary_model TEXT,
    canary_base_model TEXT,
    canary_adapter_key TEXT,
    canary_percent INTEGER DEFAULT '0' NOT NULL,
    CONSTRAINT pk_deployments PRIMARY KEY (seq),
    CONSTRAINT uq_deployments_project_id_name UNIQUE (project_id, name),
    CONSTRAINT uq_deployments_id UNIQUE (id),
    CONSTRAINT fk_deployments_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE INDEX ix_deployments_project_id_model ON deployments (project_id, model);

CREATE TABLE erasures (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    state TEXT NOT NULL,
    leftovers JSON NOT NULL,
    certificate TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    ended_at BIGINT,
    CONSTRAINT pk_erasures PRIMARY KEY (seq),
    CONSTRAINT uq_erasures_id UNIQUE (id),
    CONSTRAINT fk_erasures_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE INDEX ix_erasures_project_id_seq ON erasures (project_id, seq);

CREATE TABLE files (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    status_details TEXT,
    examples BIGINT,
    expires_at BIGINT,
    CONSTRAINT pk_files PRIMARY KEY (seq),
    CONSTRAINT uq_files_id UNIQUE (id),
    CONSTRAINT fk_files_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE INDEX ix_files_project_id_seq ON files (project_id, seq);

CREATE INDEX ix_files_sha256 ON files (sha256);

CREATE TABLE jobs (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    status TEXT NOT NULL,
    request JSON NOT NULL,
    metadata JSON,
    created_at BIGINT NOT NULL,
    resolved JSON,
    started_at BIGINT,
    finished_at BIGINT,
    estimated_finish BIGINT,
    trained_tokens BIGINT,
    fine_tuned_model TEXT,
    result_files JSON NOT NULL,
    error JSON,
    owner TEXT,
    lease_until FLOAT(53),
    fence BIGINT DEFAULT '0' NOT NULL,
    key_id TEXT,
    CONSTRAINT pk_jobs PRIMARY KEY (seq),
    CONSTRAINT uq_jobs_id UNIQUE (id),
    CONSTRAINT fk_jobs_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE INDEX ix_jobs_project_id_seq ON jobs (project_id, seq);

CREATE INDEX ix_jobs_status_seq ON jobs (status, seq);

CREATE TABLE quotas (
    seq BIGSERIAL NOT NULL,
    project_id TEXT NOT NULL,
    deployment TEXT NOT NULL,
    name TEXT NOT NULL,
    value BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    warn_percent INTEGER DEFAULT '80' NOT NULL,
    warned_at BIGINT,
    CONSTRAINT pk_quotas PRIMARY KEY (seq),
    CONSTRAINT uq_quotas_project_id_deployment_name UNIQUE (project_id, deployment, name),
    CONSTRAINT fk_quotas_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE TABLE retention (
    seq BIGSERIAL NOT NULL,
    project_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    days INTEGER NOT NULL,
    updated_at BIGINT NOT NULL,
    CONSTRAINT pk_retention PRIMARY KEY (seq),
    CONSTRAINT uq_retention_project_id_kind UNIQUE (project_id, kind),
    CONSTRAINT fk_retention_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE TABLE sessions (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    member_id TEXT NOT NULL,
    project_id TEXT,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL,
    ended_at BIGINT,
    CONSTRAINT pk_sessions PRIMARY KEY (seq),
    CONSTRAINT uq_sessions_id UNIQUE (id),
    CONSTRAINT uq_sessions_sha256 UNIQUE (sha256),
    CONSTRAINT fk_sessions_member_id FOREIGN KEY(member_id) REFERENCES members (id),
    CONSTRAINT fk_sessions_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE INDEX ix_sessions_member_id ON sessions (member_id);

CREATE TABLE storage_meters (
    seq BIGSERIAL NOT NULL,
    project_id TEXT NOT NULL,
    metered_until BIGINT NOT NULL,
    CONSTRAINT pk_storage_meters PRIMARY KEY (seq),
    CONSTRAINT uq_storage_meters_project_id UNIQUE (project_id),
    CONSTRAINT fk_storage_meters_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE TABLE usage (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    key_id TEXT,
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    trained_tokens BIGINT NOT NULL,
    seconds FLOAT(53) NOT NULL,
    created_at BIGINT NOT NULL,
    byte_seconds BIGINT DEFAULT '0' NOT NULL,
    CONSTRAINT pk_usage PRIMARY KEY (seq),
    CONSTRAINT uq_usage_id UNIQUE (id),
    CONSTRAINT fk_usage_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE INDEX ix_usage_project_id_created_at ON usage (project_id, created_at);

CREATE TABLE webhooks (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    event_types JSON NOT NULL,
    secret_version INTEGER NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    old_secret_until BIGINT,
    failing_since BIGINT,
    disabled_at BIGINT,
    CONSTRAINT pk_webhooks PRIMARY KEY (seq),
    CONSTRAINT uq_webhooks_id UNIQUE (id),
    CONSTRAINT fk_webhooks_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);

CREATE INDEX ix_webhooks_project_id_seq ON webhooks (project_id, seq);

CREATE TABLE checkpoints (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    job_id TEXT NOT NULL,
    step BIGINT NOT NULL,
    model_name TEXT NOT NULL,
    key TEXT NOT NULL,
    metrics JSON NOT NULL,
    created_at BIGINT NOT NULL,
    bytes BIGINT DEFAULT '0' NOT NULL,
    CONSTRAINT pk_checkpoints PRIMARY KEY (seq),
    CONSTRAINT uq_checkpoints_job_id_step UNIQUE (job_id, step),
    CONSTRAINT uq_checkpoints_project_id_model_name UNIQUE (project_id, model_name),
    CONSTRAINT uq_checkpoints_id UNIQUE (id),
    CONSTRAINT fk_checkpoints_project_id FOREIGN KEY(project_id) REFERENCES projects (id),
    CONSTRAINT fk_checkpoints_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);

CREATE INDEX ix_checkpoints_job_id_seq ON checkpoints (job_id, seq);

CREATE TABLE deliveries (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    webhook_id TEXT NOT NULL,
    type TEXT NOT NULL,
    object_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    next_at BIGINT NOT NULL,
    status INTEGER,
    problem TEXT,
    ended_at BIGINT,
    CONSTRAINT pk_deliveries PRIMARY KEY (seq),
    CONSTRAINT uq_deliveries_id UNIQUE (id),
    CONSTRAINT fk_deliveries_project_id FOREIGN KEY(project_id) REFERENCES projects (id),
    CONSTRAINT fk_deliveries_webhook_id FOREIGN KEY(webhook_id) REFERENCES webhooks (id) ON DELETE CASCADE
);

CREATE INDEX ix_deliveries_state_next_at ON deliveries (state, next_at);

CREATE INDEX ix_deliveries_webhook_id_seq ON deliveries (webhook_id, seq);

CREATE TABLE deployment_revisions (
    seq BIGSERIAL NOT NULL,
    project_id TEXT NOT NULL,
    deployment_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    model TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    CONSTRAINT pk_deployment_revisions PRIMARY KEY (seq),
    CONSTRAINT uq_deployment_revisions_deployment_id_number UNIQUE (deployment_id, number),
    CONSTRAINT fk_deployment_revisions_project_id FOREIGN KEY(project_id) REFERENCES projects (id),
    CONSTRAINT fk_deployment_revisions_deployment_id FOREIGN KEY(deployment_id) REFERENCES deployments (id) ON DELETE CASCADE
);

CREATE TABLE fine_tuned_models (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    base_model TEXT NOT NULL,
    job_id TEXT NOT NULL,
    suffix TEXT NOT NULL,
    checkpoint_key TEXT NOT NULL,
    step BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    CONSTRAINT pk_fine_tuned_models PRIMARY KEY (seq),
    CONSTRAINT uq_fine_tuned_models_project_id_id UNIQUE (project_id, id),
    CONSTRAINT fk_fine_tuned_models_project_id FOREIGN KEY(project_id) REFERENCES projects (id),
    CONSTRAINT fk_fine_tuned_models_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);

CREATE INDEX ix_fine_tuned_models_project_id_seq ON fine_tuned_models (project_id, seq);

CREATE TABLE job_events (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    job_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    level TEXT NOT NULL,
    message TEXT NOT NULL,
    type TEXT NOT NULL,
    data JSON,
    step BIGINT,
    CONSTRAINT pk_job_events PRIMARY KEY (seq),
    CONSTRAINT uq_job_events_job_id_step UNIQUE (job_id, step),
    CONSTRAINT uq_job_events_id UNIQUE (id),
    CONSTRAINT fk_job_events_project_id FOREIGN KEY(project_id) REFERENCES projects (id),
    CONSTRAINT fk_job_events_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);

CREATE INDEX ix_job_events_job_id_seq ON job_events (job_id, seq);

CREATE TABLE reservations (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    job_id TEXT,
    tokens BIGINT NOT NULL,
    money BIGINT NOT NULL,
    expires_at BIGINT,
    CONSTRAINT pk_reservations PRIMARY KEY (seq),
    CONSTRAINT uq_reservations_id UNIQUE (id),
    CONSTRAINT fk_reservations_project_id FOREIGN KEY(project_id) REFERENCES projects (id),
    CONSTRAINT fk_reservations_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);

CREATE INDEX ix_reservations_project_id_seq ON reservations (project_id, seq);

CREATE TABLE runs (
    seq BIGSERIAL NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    job_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    executor TEXT NOT NULL,
    handle JSON NOT NULL,
    started_at BIGINT NOT NULL,
    events_cursor TEXT NOT NULL,
    ended_at BIGINT,
    CONSTRAINT pk_runs PRIMARY KEY (seq),
    CONSTRAINT uq_runs_job_id_attempt UNIQUE (job_id, attempt),
    CONSTRAINT uq_runs_id UNIQUE (id),
    CONSTRAINT fk_runs_project_id FOREIGN KEY(project_id) REFERENCES projects (id),
    CONSTRAINT fk_runs_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);

CREATE INDEX ix_runs_state_seq ON runs (state, seq);
