-- From version 12 to 13: the URL that a join token holds; NULL for those of before.

ALTER TABLE join_tokens ADD COLUMN url TEXT;
