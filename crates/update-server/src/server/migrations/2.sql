-- What each channel's TUF metadata names, by the digest of the signed manifest: a host whose channel
-- does not name a release refuses it. Without metadata the table is empty.
CREATE TABLE signed (
    channel  TEXT NOT NULL,
    envelope TEXT NOT NULL,
    PRIMARY KEY (channel, envelope)
);
