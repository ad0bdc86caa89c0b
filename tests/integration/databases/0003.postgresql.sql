CREATE FUNCTION cloche_words(message text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
SELECT CASE WHEN message ~ '[^\u0001-\u007f]' THEN
  regexp_replace(
    normalize(regexp_replace(normalize(message, NFD), '[\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece]', '', 'g'), NFC),
    '([\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])', ' \1 ', 'g')
ELSE message END
$$;
CREATE TABLE cloche_alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE downloads (
    id character varying(36) NOT NULL,
    url text NOT NULL,
    url_key character varying(64) NOT NULL,
    checksum text,
    max_size bigint NOT NULL,
    wanted_name text,
    refresh boolean NOT NULL,
    backend character varying(16) NOT NULL,
    active_key character varying(64),
    task_id character varying(36) NOT NULL,
    state character varying(16) NOT NULL,
    cancel_requested boolean NOT NULL,
    received bigint NOT NULL,
    total bigint,
    rate double precision NOT NULL,
    attempts integer NOT NULL,
    restarts integer NOT NULL,
    error text,
    sha256 character varying(64),
    size bigint,
    filename text,
    content_type text,
    etag text,
    last_modified text,
    cached boolean NOT NULL,
    created double precision NOT NULL,
    started double precision,
    updated double precision NOT NULL,
    checked double precision,
    finished double precision
);
CREATE TABLE log_dead_letters (
    id uuid NOT NULL,
    received timestamp with time zone NOT NULL,
    reason text NOT NULL,
    payload bytea NOT NULL
);
CREATE TABLE log_records (
    id uuid NOT NULL,
    "time" timestamp with time zone NOT NULL,
    level smallint NOT NULL,
    category text NOT NULL,
    step text,
    message text NOT NULL,
    task_id text,
    run_id text,
    concept_id text,
    agent text,
    details jsonb,
    duration_ms double precision
)
PARTITION BY RANGE (id);
CREATE TABLE log_records_20261120 (
    id uuid NOT NULL,
    "time" timestamp with time zone NOT NULL,
    level smallint NOT NULL,
    category text NOT NULL,
    step text,
    message text NOT NULL,
    task_id text,
    run_id text,
    concept_id text,
    agent text,
    details jsonb,
    duration_ms double precision
);
CREATE TABLE log_records_default (
    id uuid NOT NULL,
    "time" timestamp with time zone NOT NULL,
    level smallint NOT NULL,
    category text NOT NULL,
    step text,
    message text NOT NULL,
    task_id text,
    run_id text,
    concept_id text,
    agent text,
    details jsonb,
    duration_ms double precision
);
ALTER TABLE ONLY log_records ATTACH PARTITION log_records_20261120 FOR VALUES FROM ('01a1f640-bc00-0000-0000-000000000000') TO ('01a1fb67-1800-0000-0000-000000000000');
ALTER TABLE ONLY log_records ATTACH PARTITION log_records_default DEFAULT;
INSERT INTO cloche_alembic_version VALUES ('0003');
INSERT INTO downloads VALUES ('1fd93bbe-2788-4d76-b383-6ff94d6a5dcc', 'http://h/kept', '77a6e79ef6502858421afb3b1fc4b214a6e054d97678c3e9f97697c4281cff04', NULL, 1000, NULL, false, 'http', 'c791bdaf5752c650c7cac3f19074bd9a499f05891a99c400a84ad7905eb09525', '7cd7a25c-f7c4-4711-9049-2ae28204ed7b', 'queued', false, 0, NULL, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, false, 1796085679.8512158, NULL, 1796085679.8512158, NULL, NULL);
INSERT INTO log_dead_letters VALUES ('00000000-0000-0000-0000-000000000007', '2026-11-20 12:00:00+00', 'no id', '\x0078');
INSERT INTO log_records_20261120 VALUES ('01a1f8d3-ea00-7000-8000-000000300000', '2026-11-20 12:00:00+00', 20, 'test', NULL, 'a run of the old version', NULL, 'old', NULL, NULL, NULL, NULL);
INSERT INTO log_records_20261120 VALUES ('01a1f8d3-ede8-7000-8000-000000400000', '2026-11-20 12:00:01+00', 40, 'test', NULL, '数据库 connection lost', NULL, 'old', NULL, NULL, NULL, NULL);
ALTER TABLE ONLY cloche_alembic_version
    ADD CONSTRAINT cloche_alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY downloads
    ADD CONSTRAINT downloads_active_key_key UNIQUE (active_key);
ALTER TABLE ONLY downloads
    ADD CONSTRAINT downloads_pkey PRIMARY KEY (id);
ALTER TABLE ONLY log_dead_letters
    ADD CONSTRAINT log_dead_letters_pkey PRIMARY KEY (id);
ALTER TABLE ONLY log_records
    ADD CONSTRAINT log_records_pkey PRIMARY KEY (id);
ALTER TABLE ONLY log_records_20261120
    ADD CONSTRAINT log_records_20261120_pkey PRIMARY KEY (id);
ALTER TABLE ONLY log_records_default
    ADD CONSTRAINT log_records_default_pkey PRIMARY KEY (id);
CREATE INDEX downloads_created ON downloads USING btree (created, id);
CREATE INDEX downloads_sha256 ON downloads USING btree (sha256);
CREATE INDEX downloads_url ON downloads USING btree (url_key, checked);
CREATE INDEX log_dead_letters_received ON log_dead_letters USING btree (received);
CREATE INDEX log_records_errors ON ONLY log_records USING btree (id) WHERE (level >= 40);
CREATE INDEX log_records_20261120_id_idx ON log_records_20261120 USING btree (id) WHERE (level >= 40);
CREATE INDEX log_records_run ON ONLY log_records USING btree (run_id, id) WHERE (run_id IS NOT NULL);
CREATE INDEX log_records_20261120_run_id_id_idx ON log_records_20261120 USING btree (run_id, id) WHERE (run_id IS NOT NULL);
CREATE INDEX log_records_task ON ONLY log_records USING btree (task_id, id) WHERE (task_id IS NOT NULL);
CREATE INDEX log_records_20261120_task_id_id_idx ON log_records_20261120 USING btree (task_id, id) WHERE (task_id IS NOT NULL);
CREATE INDEX log_records_text ON ONLY log_records USING gin (to_tsvector('simple'::regconfig, cloche_words(message)));
CREATE INDEX log_records_20261120_to_tsvector_idx ON log_records_20261120 USING gin (to_tsvector('simple'::regconfig, cloche_words(message)));
CREATE INDEX log_records_default_id_idx ON log_records_default USING btree (id) WHERE (level >= 40);
CREATE INDEX log_records_default_run_id_id_idx ON log_records_default USING btree (run_id, id) WHERE (run_id IS NOT NULL);
CREATE INDEX log_records_default_task_id_id_idx ON log_records_default USING btree (task_id, id) WHERE (task_id IS NOT NULL);
CREATE INDEX log_records_default_to_tsvector_idx ON log_records_default USING gin (to_tsvector('simple'::regconfig, cloche_words(message)));
ALTER INDEX log_records_errors ATTACH PARTITION log_records_20261120_id_idx;
ALTER INDEX log_records_pkey ATTACH PARTITION log_records_20261120_pkey;
ALTER INDEX log_records_run ATTACH PARTITION log_records_20261120_run_id_id_idx;
ALTER INDEX log_records_task ATTACH PARTITION log_records_20261120_task_id_id_idx;
ALTER INDEX log_records_text ATTACH PARTITION log_records_20261120_to_tsvector_idx;
ALTER INDEX log_records_errors ATTACH PARTITION log_records_default_id_idx;
ALTER INDEX log_records_pkey ATTACH PARTITION log_records_default_pkey;
ALTER INDEX log_records_run ATTACH PARTITION log_records_default_run_id_id_idx;
ALTER INDEX log_records_task ATTACH PARTITION log_records_default_task_id_id_idx;
ALTER INDEX log_records_text ATTACH PARTITION log_records_default_to_tsvector_idx;
