CREATE TABLE cloche_alembic_version (
  version_num VARCHAR(32) NOT NULL,
  CONSTRAINT cloche_alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO cloche_alembic_version VALUES ('0003');
CREATE TABLE downloads (
  id VARCHAR(36) NOT NULL,
  url TEXT NOT NULL,
  url_key VARCHAR(64) NOT NULL,
  checksum TEXT,
  max_size BIGINT NOT NULL,
  wanted_name TEXT,
  refresh BOOLEAN NOT NULL,
  backend VARCHAR(16) NOT NULL,
  active_key VARCHAR(64),
  task_id VARCHAR(36) NOT NULL,
  state VARCHAR(16) NOT NULL,
  cancel_requested BOOLEAN NOT NULL,
  received BIGINT NOT NULL,
  total BIGINT,
  rate DOUBLE NOT NULL,
  attempts INTEGER NOT NULL,
  restarts INTEGER NOT NULL,
  error TEXT,
  sha256 VARCHAR(64),
  size BIGINT,
  filename TEXT,
  content_type TEXT,
  etag TEXT,
  last_modified TEXT,
  cached BOOLEAN NOT NULL,
  created DOUBLE NOT NULL,
  started DOUBLE,
  updated DOUBLE NOT NULL,
  checked DOUBLE,
  finished DOUBLE,
  PRIMARY KEY (id),
  UNIQUE (active_key)
);
INSERT INTO downloads VALUES ('187a1f0d-ce5c-4872-b661-9b6dcbaf29aa', 'http://h/kept', '77a6e79ef6502858421afb3b1fc4b214a6e054d97678c3e9f97697c4281cff04', NULL, 1000, NULL, 0, 'http', 'c791bdaf5752c650c7cac3f19074bd9a499f05891a99c400a84ad7905eb09525', 'a62b5616-2c7c-4cc0-94d7-4d4db2450918', 'queued', 0, 0, NULL, 0.0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 1.79608567749058914181e+09, NULL, 1.79608567749058914181e+09, NULL, NULL);
CREATE INDEX downloads_created ON downloads (created, id);
CREATE INDEX downloads_url ON downloads (url_key, checked);
CREATE INDEX downloads_sha256 ON downloads (sha256);
CREATE TABLE log_records (
  seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, time BIGINT NOT NULL,
  level SMALLINT NOT NULL, category TEXT NOT NULL, step TEXT, message TEXT NOT NULL,
  task_id TEXT, run_id TEXT, concept_id TEXT, agent TEXT, details JSON, duration_ms DOUBLE
);
INSERT INTO log_records VALUES (1, X'01A1F8D3EA0070008000000000100000', 1795176000000000, 20, 'test', NULL, 'a run of the old version', NULL, 'old', NULL, NULL, NULL, NULL);
INSERT INTO log_records VALUES (2, X'01A1F8D3EDE870008000000000200000', 1795176001000000, 40, 'test', NULL, '数据库 connection lost', NULL, 'old', NULL, NULL, NULL, NULL);
CREATE INDEX log_records_run ON log_records (run_id, id) WHERE run_id IS NOT NULL;
CREATE INDEX log_records_task ON log_records (task_id, id) WHERE task_id IS NOT NULL;
CREATE INDEX log_records_errors ON log_records (id) WHERE level >= 40;
CREATE TABLE log_dead_letters (
  id BLOB NOT NULL PRIMARY KEY, received BIGINT NOT NULL, reason TEXT NOT NULL,
  payload BLOB NOT NULL
);
INSERT INTO log_dead_letters VALUES (X'00000000000000000000000000000007', 1795176000000000, 'no id', X'0078');
CREATE INDEX log_dead_letters_received ON log_dead_letters (received);
CREATE VIEW log_records_words AS SELECT seq, cloche_words(message) AS message FROM log_records;
CREATE VIRTUAL TABLE log_records_text USING fts5(message, content='log_records_words', content_rowid='seq');
CREATE TRIGGER log_records_deleted BEFORE DELETE ON log_records BEGIN INSERT INTO log_records_text (log_records_text, rowid, message) VALUES ('delete', OLD.seq, cloche_words(OLD.message)); END;
INSERT INTO log_records_text (log_records_text) VALUES ('rebuild');
