-- Every statement of the backend by its name. Lists travel as one JSON parameter: a statement is then one step, and the
-- interpreter's lock is let go and taken back once for a batch instead of once for a row, which under a busy event loop
-- costs up to 5 ms each time. Records travel as one value of all of them, beside a list of *spans*: where each begins,
-- counted from 1, times 2^31, plus its length.

-- name: routes_version
SELECT routes FROM versions

-- name: routes_changed
UPDATE versions SET routes = routes + 1

-- name: subscriptions
SELECT id, topic, group_name, ordered, expires_at FROM subscriptions ORDER BY id

-- name: retentions
SELECT topic, duration FROM retentions

-- name: add_subscription
INSERT INTO subscriptions (topic, group_name, ordered, expires_at) VALUES (?, ?, ?, ?)

-- name: change_subscription
UPDATE subscriptions SET ordered = ?, expires_at = ? WHERE id = ?

-- name: remove_subscription
DELETE FROM subscriptions WHERE id = ?

-- name: remove_deliveries
DELETE FROM deliveries WHERE subscription = ?

-- name: retain
INSERT INTO retentions (topic, duration) VALUES (:topic, :duration)
ON CONFLICT (topic) DO UPDATE SET duration = excluded.duration

-- name: extend_log
UPDATE log SET expires_at = published + :duration WHERE topic = :topic

-- name: records
SELECT id, record FROM deliveries WHERE subscription = ?

-- name: begin_order
UPDATE deliveries SET lane = kept.value ->> 1, due = visible_at,
    visible_at = CASE WHEN token <> 0 AND visible_at > :now THEN visible_at ELSE 9223372036854775807 END
FROM json_each(:lanes) AS kept
WHERE deliveries.id = kept.value ->> 0

-- name: end_order
UPDATE deliveries SET visible_at = CASE visible_at WHEN 9223372036854775807 THEN due ELSE visible_at END,
    lane = NULL, due = NULL
WHERE subscription = ? AND lane IS NOT NULL

-- name: unblock_subscription
UPDATE deliveries SET visible_at = due
WHERE visible_at = 9223372036854775807
    AND id IN (SELECT min(id) FROM deliveries WHERE subscription = ? AND lane IS NOT NULL GROUP BY lane)

-- name: unblock_lanes
UPDATE deliveries SET visible_at = due
WHERE visible_at = 9223372036854775807 AND id IN (
    SELECT (
        SELECT min(head.id) FROM deliveries AS head
        WHERE head.subscription = lanes.value ->> 0 AND head.lane = lanes.value ->> 1
    )
    FROM json_each(?) AS lanes
)

-- name: last_log_id
SELECT seq FROM sqlite_sequence WHERE name = 'log'

-- name: mark
INSERT INTO marks (topic, message_id, expires_at) VALUES (:topic, :id, :expires_at)
ON CONFLICT (topic, message_id) DO UPDATE SET expires_at = excluded.expires_at WHERE marks.expires_at <= :now

-- name: deliver
INSERT INTO deliveries (subscription, visible_at, published, record)
SELECT :subscription, :due, :now, substr(:records, value >> 31, value & 2147483647) FROM json_each(:spans)

-- name: deliver_each
INSERT INTO deliveries (subscription, visible_at, published, lane, due, log_id, record)
SELECT value ->> 1, iif(value ->> 3 IS NULL, value ->> 2, 9223372036854775807), :now, value ->> 3,
    iif(value ->> 3 IS NULL, NULL, value ->> 2), value ->> 4,
    substr(:records, (value ->> 0) >> 31, (value ->> 0) & 2147483647)
FROM json_each(:rows)

-- name: log
INSERT INTO log (id, topic, published, due, expires_at, lane, record)
SELECT value ->> 1, value ->> 2, :now, value ->> 3, value ->> 4, value ->> 5,
    substr(:records, (value ->> 0) >> 31, (value ->> 0) & 2147483647)
FROM json_each(:rows)

-- name: look
SELECT min(due), json_group_array(subscription) FILTER (WHERE due <= :now)
FROM (
    SELECT value AS subscription,
        (SELECT min(visible_at) FROM deliveries WHERE deliveries.subscription = wanted.value) AS due
    FROM json_each(:subscriptions) AS wanted
)

-- name: claim_read
SELECT json_group_array(id),
    json_group_array(id) FILTER (WHERE size > :inline),
    json_group_array(json_array(id, attempt + 1, json(history))) FILTER (WHERE attempt > 0),
    CAST(group_concat(small, '') AS BLOB),
    (SELECT min(visible_at) FROM deliveries WHERE subscription = :subscription)
FROM (
    SELECT id, attempt, history, length(record) AS size,
        CASE WHEN length(record) <= :inline THEN record ELSE x'' END AS small
    FROM deliveries
    WHERE subscription = :subscription AND visible_at <= :now
    ORDER BY visible_at, id LIMIT :room
)

-- name: claim_take
UPDATE deliveries SET visible_at = :until, attempt = attempt + 1, token = :token
WHERE id IN (SELECT value FROM json_each(:ids))

-- name: block_lost
-- What was claimed before the subscription was ordered, and is not the oldest of its key, waits for its turn.
UPDATE deliveries SET due = visible_at, visible_at = 9223372036854775807, token = 0
WHERE id IN (SELECT value FROM json_each(?)) AND lane IS NOT NULL AND EXISTS (
    SELECT 1 FROM deliveries AS older
    WHERE older.subscription = deliveries.subscription AND older.lane = deliveries.lane AND older.id < deliveries.id
)

-- name: record
SELECT record FROM deliveries WHERE id = ?

-- name: held
SELECT json_group_array(id) FROM deliveries WHERE token = ? AND id IN (SELECT value FROM json_each(?))

-- name: ack
DELETE FROM deliveries WHERE token = ? AND id IN (SELECT value FROM json_each(?))

-- name: ack_run
DELETE FROM deliveries WHERE token = ? AND id BETWEEN ? AND ?

-- name: renew
UPDATE deliveries SET visible_at = ? WHERE token = ? AND id IN (SELECT value FROM json_each(?))

-- name: retry
UPDATE deliveries SET visible_at = iif(lane IS NOT NULL AND EXISTS (
        SELECT 1 FROM deliveries AS older
        WHERE older.subscription = deliveries.subscription AND older.lane = deliveries.lane AND older.id < deliveries.id
    ), 9223372036854775807, ended.value ->> 2),
    due = iif(lane IS NULL, NULL, ended.value ->> 2), history = nullif(ended.value -> 3, 'null'), token = 0
FROM json_each(?) AS ended
WHERE deliveries.id = ended.value ->> 0 AND token = ended.value ->> 1

-- name: release
UPDATE deliveries SET visible_at = iif(lane IS NOT NULL AND EXISTS (
        SELECT 1 FROM deliveries AS older
        WHERE older.subscription = deliveries.subscription AND older.lane = deliveries.lane AND older.id < deliveries.id
    ), 9223372036854775807, ended.value ->> 2),
    due = iif(lane IS NULL, NULL, ended.value ->> 2), attempt = attempt - 1, token = 0
FROM json_each(?) AS ended
WHERE deliveries.id = ended.value ->> 0 AND token = ended.value ->> 1

-- name: bury
INSERT INTO dead_letters (queue, subscription_topic, group_name, died_at, reason, history, attempt, record)
SELECT dead.value ->> 2, dead.value ->> 3, dead.value ->> 4, :now, dead.value ->> 5, nullif(dead.value -> 6, 'null'),
    attempt, record
FROM json_each(:dead) AS dead CROSS JOIN deliveries ON deliveries.id = dead.value ->> 0 AND token = dead.value ->> 1
ORDER BY dead.key

-- name: replay
INSERT INTO deliveries (subscription, visible_at, published, lane, due, record)
VALUES (:subscription, iif(:lane IS NULL, :now, 9223372036854775807), :published, :lane, iif(:lane IS NULL, NULL, :now),
    :record)

-- name: deliver_again
INSERT INTO deliveries (subscription, visible_at, published, lane, due, log_id, record)
SELECT :subscription, iif(:ordered AND lane IS NOT NULL, 9223372036854775807, max(due, :now)), published,
    iif(:ordered, lane, NULL), iif(:ordered AND lane IS NOT NULL, max(due, :now), NULL), id, record
FROM log
WHERE topic IN (SELECT value FROM json_each(:topics)) AND published >= :since AND expires_at >= :now
    AND id NOT IN (SELECT log_id FROM deliveries WHERE subscription = :subscription AND log_id IS NOT NULL)
ORDER BY id

-- name: drop_logged
DELETE FROM deliveries
WHERE subscription = :subscription AND lane IS NOT NULL AND (token = 0 OR visible_at <= :now)
    AND log_id IN (
        SELECT id FROM log
        WHERE topic IN (SELECT value FROM json_each(:topics)) AND published >= :since AND expires_at >= :now
    )

-- name: last_delivery
SELECT coalesce(max(id), 0) FROM deliveries WHERE subscription = ?

-- name: mixed_lanes
-- Those to which something was added after `last`, behind what was not in flight before.
SELECT json_group_array(DISTINCT added.lane), (SELECT max(id) FROM deliveries)
FROM deliveries AS added
WHERE added.subscription = :subscription AND added.id > :last AND added.lane IS NOT NULL AND EXISTS (
    SELECT 1 FROM deliveries AS older
    WHERE older.subscription = :subscription AND older.lane = added.lane AND older.id <= :last
        AND (older.token = 0 OR older.visible_at <= :now)
)

-- name: line_up
-- All of these lanes that is not in flight and all that was added after `last`, once more, in the order published.
INSERT INTO deliveries (subscription, visible_at, attempt, published, lane, due, log_id, history, record)
SELECT subscription, iif(lane IS NULL, visible_at, 9223372036854775807), attempt, published, lane,
    iif(lane IS NULL OR visible_at = 9223372036854775807, due, visible_at), log_id, history, record
FROM deliveries
WHERE subscription = :subscription AND (token = 0 OR visible_at <= :now)
    AND (id > :last OR lane IN (SELECT value FROM json_each(:lanes)))
ORDER BY published, log_id IS NULL, log_id, id

-- name: drop_lined_up
DELETE FROM deliveries
WHERE subscription = :subscription AND (token = 0 OR visible_at <= :now) AND id <= :newest
    AND (id > :last OR lane IN (SELECT value FROM json_each(:lanes)))

-- name: purge
DELETE FROM deliveries WHERE subscription = ? AND (token = 0 OR visible_at <= ?)

-- name: groups
WITH counts AS (
    SELECT subscription,
        count(*) FILTER (WHERE visible_at <= :now) AS waiting,
        count(*) FILTER (WHERE visible_at > :now AND token <> 0) AS in_flight,
        count(*) FILTER (WHERE visible_at > :now AND token = 0 AND attempt > 0) AS retrying,
        count(*) FILTER (WHERE visible_at > :now AND token = 0 AND attempt = 0) AS delayed,
        min(published) AS oldest
    FROM deliveries GROUP BY subscription
)
SELECT s.topic, s.group_name, coalesce(waiting, 0), coalesce(delayed, 0), coalesce(retrying, 0), coalesce(in_flight, 0),
    (SELECT count(*) FROM dead_letters AS d WHERE d.subscription_topic = s.topic AND d.group_name = s.group_name),
    oldest,
    (SELECT count(*) FROM consumers AS c
     WHERE c.topic = s.topic AND c.group_name = s.group_name AND c.expires_at > :now)
FROM subscriptions AS s LEFT JOIN counts ON counts.subscription = s.id
WHERE s.expires_at IS NULL OR s.expires_at > :now
ORDER BY s.topic, s.group_name

-- name: peek
SELECT record, attempt + 1
FROM deliveries
WHERE subscription = ? AND (token = 0 OR visible_at <= ?)
ORDER BY visible_at, id LIMIT ?

-- name: dead_letters
SELECT id, queue, subscription_topic, group_name, record, attempt, reason, died_at, history
FROM dead_letters
WHERE (:queue IS NULL OR queue = :queue)
    AND (:ids IS NULL OR id IN (SELECT value FROM json_each(:ids)))
ORDER BY id LIMIT :limit

-- name: dead_subscriptions
SELECT id, subscription_topic, group_name FROM dead_letters
WHERE queue = :queue AND (:ids IS NULL OR id IN (SELECT value FROM json_each(:ids)))
ORDER BY id

-- name: dead_record
SELECT record FROM dead_letters WHERE id = ?

-- name: remove_dead_letter
DELETE FROM dead_letters WHERE id = ?

-- name: purge_dead
DELETE FROM dead_letters
WHERE queue = :queue AND died_at <= :until AND (:ids IS NULL OR id IN (SELECT value FROM json_each(:ids)))

-- name: store_get
SELECT key, value, version FROM store
WHERE key IN (SELECT value FROM json_each(?)) AND (expires_at IS NULL OR expires_at > ?)

-- name: store_scan
SELECT key, value, version FROM store
WHERE key >= :prefix AND key < CAST(:end AS TEXT) AND (expires_at IS NULL OR expires_at > :now)
ORDER BY key LIMIT :limit

-- name: store_put
INSERT INTO store (key, value, version, expires_at)
SELECT value ->> 1, coalesce(substr(:values, (value ->> 0) >> 31, (value ->> 0) & 2147483647), x''), value ->> 2,
    value ->> 3
FROM json_each(:rows) WHERE true
ON CONFLICT (key) DO UPDATE
SET value = excluded.value, version = excluded.version, expires_at = excluded.expires_at

-- name: store_delete
DELETE FROM store WHERE key IN (SELECT value FROM json_each(?))

-- name: store_versions
SELECT json_group_array(json_array(key, version)) FROM store
WHERE key IN (SELECT value FROM json_each(?)) AND (expires_at IS NULL OR expires_at > ?)

-- name: joins
SELECT coalesce((SELECT max(id) FROM joins), 0),
    json_group_array(json_array(key, id, size, json(completed), coalesce(expires_at <= :now, 0)))
FROM joins WHERE key IN (SELECT value FROM json_each(:keys))

-- name: members_there
SELECT json_group_array(wanted.key)
FROM json_each(?) AS wanted CROSS JOIN members ON joined = wanted.value ->> 0 AND member = wanted.value ->> 1

-- name: add_members
INSERT INTO members (joined, member) SELECT value ->> 0, value ->> 1 FROM json_each(?)

-- name: remove_members
DELETE FROM members WHERE joined IN (SELECT value FROM json_each(?))

-- name: put_joins
INSERT INTO joins (id, key, size, completed, expires_at)
SELECT value ->> 0, value ->> 1, value ->> 2, nullif(value -> 3, 'null'), value ->> 4 FROM json_each(?) WHERE true
ON CONFLICT (id) DO UPDATE
SET size = excluded.size, completed = excluded.completed, expires_at = excluded.expires_at

-- name: renew_subscription
UPDATE subscriptions SET expires_at = ? WHERE topic = ? AND group_name = ?

-- name: renew_consumer
INSERT INTO consumers (id, topic, group_name, expires_at) VALUES (?, ?, ?, ?)
ON CONFLICT (id, topic, group_name) DO UPDATE SET expires_at = excluded.expires_at

-- name: remove_consumer
DELETE FROM consumers WHERE id = ?

-- name: expired
SELECT EXISTS (SELECT 1 FROM marks WHERE expires_at <= :now)
    OR EXISTS (SELECT 1 FROM store WHERE expires_at <= :now)
    OR EXISTS (SELECT 1 FROM joins WHERE expires_at <= :now)
    OR EXISTS (SELECT 1 FROM log WHERE expires_at < :now)
    OR EXISTS (SELECT 1 FROM consumers WHERE expires_at <= :now)
    OR EXISTS (SELECT 1 FROM subscriptions WHERE expires_at <= :now)

-- name: expire_marks
DELETE FROM marks WHERE (topic, message_id) IN (SELECT topic, message_id FROM marks WHERE expires_at <= ? LIMIT 5000)

-- name: expire_store
DELETE FROM store WHERE key IN (SELECT key FROM store WHERE expires_at <= ? LIMIT 5000)

-- name: expire_members
DELETE FROM members WHERE (joined, member) IN (
    SELECT joined, member FROM joins JOIN members ON joined = joins.id WHERE joins.expires_at <= ? LIMIT 5000
)

-- name: expire_joins
DELETE FROM joins WHERE id IN (
    SELECT id FROM joins
    WHERE expires_at <= ? AND NOT EXISTS (SELECT 1 FROM members WHERE joined = joins.id) LIMIT 5000
)

-- name: expire_log
DELETE FROM log WHERE id IN (SELECT id FROM log WHERE expires_at < ? LIMIT 5000)

-- name: expire_consumers
DELETE FROM consumers WHERE expires_at <= ?

-- name: expired_subscriptions
SELECT id FROM subscriptions WHERE expires_at <= ?
