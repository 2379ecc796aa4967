//! Keys of secrets: `keys/secrets.key`, one key a line, the newest first. Secrets are encrypted with AES-256-GCM.
//!
//! The first secret makes the file; the keys of an orchestrator without secrets are those of earlier releases. Each value
//! has a random nonce, and its owner, its name and the id of its key are authenticated with it. So a row of the database
//! that is copied over another one can't be read.
//!
//! **Rotation.** The file has every key that a row may need, at every moment:
//!
//! ```text
//! file: old ──▶ file: new, old ──▶ all rows: new, in one commit ──▶ file: new
//! ```
//!
//! A rotation that is cut short leaves two keys in the file, and all is readable; the next one ends what it began. New
//! values wait for the end of a rotation, so that none is encrypted with a key that is about to go.

use crate::{
    api::{UserId, secrets::SecretName},
    background::run_to_end,
    data_dir::{DataDir, SecretFile},
    digest::sha256_hex,
    files::{Durability, replace_file},
    secrets::{check_random_secret, random_secret},
    store::{Resealed, SealedSecret, SecretSealing},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::{io, path::PathBuf, sync::Arc};
use tokio::{
    sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
    task::spawn_blocking,
};
use zeroize::Zeroizing;

/// Path of the file in the data directory.
pub(super) const FILE: &str = "keys/secrets.key";
/// Next step for a file that can't be used.
const ADVICE: &str = "restore it from a backup, or move it away, after which all secrets have to be set again (cynode secrets set)";
/// Length of an id, in hex digits.
const ID_CHARS: usize = 16;
/// Bytes of the tag behind a ciphertext.
const TAG_BYTES: usize = 16;

/// One key.
struct SecretKey {
    id: String,
    text: Zeroizing<String>,
    key: LessSafeKey,
}

/// Keys of an orchestrator, the newest first; none before the first secret.
#[derive(Clone, Default)]
pub(super) struct KeyRing(Vec<Arc<SecretKey>>);

/// The file, and the keys in it.
#[derive(Clone)]
pub(super) struct SecretKeys {
    path: PathBuf,
    ring: Arc<RwLock<KeyRing>>,
}

impl SecretKey {
    /// Key of a line; `None` where that is not a key.
    fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        let key = UnboundKey::new(&AES_256_GCM, &bytes).ok()?;
        let mut id = sha256_hex(text.as_bytes());
        id.truncate(ID_CHARS);
        Some(Self {
            id,
            text: Zeroizing::new(text.to_owned()),
            key: LessSafeKey::new(key),
        })
    }

    /// Data that is authenticated with a value. Neither an id nor a name has a line feed.
    fn bound_data(&self, owner: Option<UserId>, name: &SecretName) -> Vec<u8> {
        let owner = owner.map_or_else(|| "everyone".to_owned(), |user| user.to_string());
        format!("cynode secret\n{owner}\n{name}\n{}", self.id).into_bytes()
    }

    fn seal(&self, owner: Option<UserId>, name: &SecretName, value: &str) -> Option<SecretSealing> {
        let mut nonce = [0_u8; NONCE_LEN];
        getrandom::fill(&mut nonce).ok()?;
        // The value is encrypted in place, and no copy of it is left by a growing buffer.
        let mut sealed = Vec::with_capacity(value.len() + TAG_BYTES);
        sealed.extend_from_slice(value.as_bytes());
        let data = Aad::from(self.bound_data(owner, name));
        let unique = Nonce::assume_unique_for_key(nonce);
        let encrypted = self.key.seal_in_place_append_tag(unique, data, &mut sealed);
        encrypted.ok()?;
        Some(SecretSealing {
            key_id: self.id.clone(),
            bytes: [&nonce[..], &sealed[..]].concat(),
        })
    }

    fn open(&self, secret: &SealedSecret) -> Option<Zeroizing<String>> {
        let (nonce, sealed) = secret.sealing.bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let data = Aad::from(self.bound_data(secret.owner, &secret.name));
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let value = self.key.open_in_place(nonce, data, &mut sealed).ok()?;
        let text = std::str::from_utf8(value).ok()?;
        Some(Zeroizing::new(text.to_owned()))
    }
}

impl KeyRing {
    /// Keys in the text of a file; `None` where a line is not a key.
    fn parse(text: &str) -> Option<Self> {
        let keys = text.lines().map(|line| SecretKey::parse(line.trim()));
        let keys = keys.map(|key| key.map(Arc::new));
        keys.collect::<Option<_>>().map(Self)
    }

    /// Keys with a new one before them.
    fn with_new(&self) -> io::Result<Self> {
        let new = SecretKey::parse(&random_secret());
        let new = new.ok_or_else(|| io::Error::other("a new key could not be made"))?;
        let mut keys = vec![Arc::new(new)];
        keys.extend(self.0.iter().cloned());
        Ok(Self(keys))
    }

    /// The newest key alone.
    fn newest(&self) -> Self {
        Self(self.0.first().into_iter().cloned().collect())
    }

    /// Whether the key of this id is here.
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id == id)
    }

    /// Encrypts a value with the newest key; `None` where there is none, or no random number.
    pub(super) fn seal(
        &self,
        owner: Option<UserId>,
        name: &SecretName,
        value: &str,
    ) -> Option<SecretSealing> {
        self.0.first()?.seal(owner, name, value)
    }

    /// Value of a secret; `None` where its key is not here, or its row was changed.
    pub(super) fn open(&self, secret: &SealedSecret) -> Option<Zeroizing<String>> {
        let mut keys = self.0.iter();
        let key = keys.find(|key| key.id == secret.sealing.key_id)?;
        key.open(secret)
    }

    /// Encrypts a secret with the newest key.
    pub(super) fn reseal(&self, secret: &SealedSecret) -> Resealed {
        let Some(value) = self.open(secret) else {
            return Resealed::Unreadable;
        };
        let is_newest = |key: &Arc<SecretKey>| key.id == secret.sealing.key_id;
        if self.0.first().is_some_and(is_newest) {
            return Resealed::Unchanged;
        }
        let sealing = self.seal(secret.owner, &secret.name, &value);
        sealing.map_or(Resealed::Unreadable, Resealed::New)
    }
}

impl SecretKeys {
    /// Reads the keys that there are.
    pub(super) fn open(data_dir: &DataDir) -> io::Result<Self> {
        let file = SecretFile {
            name: FILE,
            validate: check_keys,
            advice: ADVICE,
        };
        let text = data_dir.secret_if_there(file)?;
        let ring = match text {
            None => KeyRing::default(),
            Some(text) => KeyRing::parse(&text).ok_or_else(|| {
                let path = data_dir.join(FILE);
                let text = format!(
                    "{} is damaged: it has a line that is not a key; {ADVICE}",
                    path.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
        };
        Ok(Self {
            path: data_dir.join(FILE),
            ring: Arc::new(RwLock::new(ring)),
        })
    }

    /// Keys for reading. They stay as they are while the guard lives.
    pub(super) async fn read(&self) -> OwnedRwLockReadGuard<KeyRing> {
        Arc::clone(&self.ring).read_owned().await
    }

    /// Keys for a new value: the first one makes the first key. No rotation begins while the guard lives.
    pub(super) async fn read_or_create(&self) -> io::Result<OwnedRwLockReadGuard<KeyRing>> {
        let ring = self.read().await;
        if !ring.0.is_empty() {
            return Ok(ring);
        }
        drop(ring);
        let keys = self.clone();
        // Also for a caller who hangs up: a file that is still being written could replace that of the next caller, whose
        // key would be lost.
        let created = run_to_end("create_secret_key", async move {
            let mut ring = Arc::clone(&keys.ring).write_owned().await;
            if ring.0.is_empty() {
                let first = ring.with_new()?;
                keys.write(&first).await?;
                *ring = first;
            }
            Ok::<_, io::Error>(ring.downgrade())
        });
        created.await.map_err(io::Error::from).flatten()
    }

    /// Adds a new key, with which values are encrypted from now on. Until [`end`](Rotation::end) nothing else is read or
    /// encrypted.
    pub(super) async fn begin_rotation(&self) -> io::Result<Rotation> {
        let mut ring = Arc::clone(&self.ring).write_owned().await;
        let keys = ring.with_new()?;
        self.write(&keys).await?;
        *ring = keys;
        Ok(Rotation {
            keys: self.clone(),
            ring,
        })
    }

    /// Writes the file, which survives a loss of power then.
    async fn write(&self, ring: &KeyRing) -> io::Result<()> {
        let mut text = Zeroizing::new(String::new());
        for key in &ring.0 {
            text.push_str(&key.text);
            text.push('\n');
        }
        let path = self.path.clone();
        let written =
            spawn_blocking(move || replace_file(&path, text.as_bytes(), Durability::Full));
        written.await.map_err(io::Error::from).flatten()
    }
}

/// Checks the text of the file; an error completes "its content …".
fn check_keys(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    text.lines()
        .try_for_each(|line| check_random_secret(line.trim()))
}

/// Rotation under way.
pub(super) struct Rotation {
    keys: SecretKeys,
    ring: OwnedRwLockWriteGuard<KeyRing>,
}

impl Rotation {
    /// All keys, the new one first.
    pub(super) fn ring(&self) -> KeyRing {
        self.ring.clone()
    }

    /// Removes the earlier keys, which no row needs any more. Where the file can't be written they stay in it, until the
    /// next rotation.
    pub(super) async fn end(mut self) {
        let newest = self.ring.newest();
        match self.keys.write(&newest).await {
            Ok(()) => *self.ring = newest,
            Err(error) => {
                tracing::warn!(path = %self.keys.path.display(), %error, "earlier keys of secrets not removed; rotate again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn ring() -> KeyRing {
        KeyRing::default().with_new().unwrap()
    }

    fn name(text: &str) -> SecretName {
        text.parse().unwrap()
    }

    fn sealed(ring: &KeyRing, owner: Option<UserId>, value: &str) -> SealedSecret {
        SealedSecret {
            owner,
            name: name("A"),
            sealing: ring.seal(owner, &name("A"), value).unwrap(),
        }
    }

    fn open(ring: &KeyRing, secret: &SealedSecret) -> Option<String> {
        ring.open(secret).map(|value| value.to_string())
    }

    #[test]
    fn value_is_bound_to_its_row() {
        let (ring, ann) = (ring(), UserId::new());
        let secret = sealed(&ring, Some(ann), "swordfish");
        assert_eq!(open(&ring, &secret).as_deref(), Some("swordfish"));
        let bytes = &secret.sealing.bytes;
        assert!(!bytes.windows(9).any(|part| part == b"swordfish"));
        let other = |owner, name, bytes| SealedSecret {
            owner,
            name,
            sealing: SecretSealing {
                key_id: secret.sealing.key_id.clone(),
                bytes,
            },
        };
        let mut changed = bytes.clone();
        changed[NONCE_LEN] ^= 1;
        for other in [
            other(None, name("A"), bytes.clone()),
            other(Some(UserId::new()), name("A"), bytes.clone()),
            other(Some(ann), name("B"), bytes.clone()),
            other(Some(ann), name("A"), changed),
            other(Some(ann), name("A"), bytes[..5].to_vec()),
        ] {
            assert_eq!(open(&ring, &other), None);
        }
        assert_eq!(open(&self::ring(), &secret), None);
    }

    #[test]
    fn same_value_is_sealed_differently() {
        let ring = ring();
        let [one, two] = [(); 2].map(|()| sealed(&ring, None, "swordfish").sealing.bytes);
        assert_ne!(one, two);
    }

    #[tokio::test]
    async fn first_value_makes_key_that_stays() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(dir.path()).unwrap();
        data_dir.subdir("keys").unwrap();
        let keys = SecretKeys::open(&data_dir).unwrap();
        assert!(!dir.path().join(FILE).exists());
        let secret = sealed(&keys.read_or_create().await.unwrap(), None, "swordfish");
        let again = SecretKeys::open(&data_dir).unwrap();
        let found = open(&*again.read().await, &secret);
        assert_eq!(found.as_deref(), Some("swordfish"));
    }

    /// Whatever the moment at which a rotation is cut short, the file has the key of each row.
    #[tokio::test]
    async fn interrupted_rotation_loses_no_value() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(dir.path()).unwrap();
        data_dir.subdir("keys").unwrap();
        let keys = SecretKeys::open(&data_dir).unwrap();
        let old = sealed(&keys.read_or_create().await.unwrap(), None, "swordfish");
        let rotation = keys.begin_rotation().await.unwrap();
        let Resealed::New(sealing) = rotation.ring().reseal(&old) else {
            panic!("it was not encrypted again");
        };
        let new = SealedSecret {
            sealing,
            ..old.clone()
        };
        drop(rotation);
        let lines = || {
            fs::read_to_string(dir.path().join(FILE))
                .unwrap()
                .lines()
                .count()
        };
        assert_eq!(lines(), 2);
        let restarted = SecretKeys::open(&data_dir).unwrap();
        for secret in [&old, &new] {
            let found = open(&*restarted.read().await, secret);
            assert_eq!(found.as_deref(), Some("swordfish"));
        }
        let rotation = restarted.begin_rotation().await.unwrap();
        assert!(matches!(rotation.ring().reseal(&new), Resealed::New(_)));
        rotation.end().await;
        assert_eq!(lines(), 1);
        assert_eq!(open(&*restarted.read().await, &new), None);
    }
}
