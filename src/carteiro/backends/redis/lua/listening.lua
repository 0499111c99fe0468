#!lua flags=no-writes,allow-oom
-- Listening: who consumes.
--
-- needs     common
-- keys      consumers
-- request   time
-- answer    consumer and queue of all that do
--
-- Invariant: it changes nothing; who is silent past its time is not among them.

return call('ZRANGEBYSCORE', base .. ':consumers', '(' .. string.format('%d', now), '+inf')
