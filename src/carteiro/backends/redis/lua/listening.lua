#!lua flags=no-writes,allow-oom
-- Listening: who consumes.
--
-- needs     common
-- request   time
-- answer    consumer and queue of all that do

return call('ZRANGEBYSCORE', base .. ':consumers', '(' .. string.format('%d', now), '+inf')
