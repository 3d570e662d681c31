//! Where the files of releases are: a directory, or a bucket that speaks S3. Several servers may
//! share either.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt as _, RetryConfig,
    WriteMultipart,
};
use release::{PAYLOAD_MAGIC, Sha1, Sha256};
use sha2::Digest as _;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::error::ApiError;

const SCHEME: &str = "s3://";
/// S3 takes no smaller parts than 5 MiB, and no more than 10,000 of them.
const PART: usize = 8 << 20;
/// Parts of one upload that are under way.
const PARTS: usize = 3;
const CHUNK: usize = 128 << 10;
/// A server that nobody can reach is to be told of before the client gives up.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRIES: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum ArtifactsError {
    #[error("{0} is no address of a bucket")]
    Address(String),
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

#[derive(Clone)]
pub(super) struct Artifacts {
    store: Arc<dyn ObjectStore>,
    /// For messages: the directory, or the bucket's address.
    place: String,
}

/// A part of a file, as it was asked for.
pub(super) struct Part {
    pub(super) body: Body,
    pub(super) range: std::ops::Range<u64>,
}

/// What a stored file turns out to be.
pub(super) struct Stored {
    pub(super) size: u64,
    pub(super) sha256: Sha256,
    pub(super) sha1: Sha1,
    /// It begins as payloads for update_engine do.
    pub(super) is_payload: bool,
}

impl Artifacts {
    /// `s3://BUCKET[/PREFIX]`, or a directory that exists.
    pub(super) fn open(place: &str) -> Result<Self, ArtifactsError> {
        let store: Arc<dyn ObjectStore> = match place.strip_prefix(SCHEME) {
            Some(address) => s3(place, address)?,
            None => Arc::new(LocalFileSystem::new_with_prefix(place)?.with_fsync(true)),
        };
        Ok(Self {
            store,
            place: place.trim_end_matches('/').to_owned(),
        })
    }

    /// The directory that `place` is, if it is one.
    pub(super) fn directory(place: &str) -> Option<PathBuf> {
        (!place.starts_with(SCHEME)).then(|| PathBuf::from(place))
    }

    /// Whether it can be used, as far as reading tells.
    pub(super) async fn try_it(&self) -> Result<(), ArtifactsError> {
        self.store.list(None).next().await.transpose()?;
        Ok(())
    }

    /// For messages.
    pub(super) fn describe(&self, name: &str) -> String {
        format!("{}/{name}", self.place)
    }

    /// All of a small file, if there is one.
    pub(super) async fn read(&self, name: &str) -> Result<Option<Bytes>, ApiError> {
        let got = async { self.store.get(&path(name)?).await?.bytes().await };
        match got.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.unreadable(name, &error)),
        }
    }

    pub(super) async fn size(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let asked = async { self.store.head(&path(name)?).await };
        match asked.await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.unreadable(name, &error)),
        }
    }

    /// A file on its way to whoever downloads it, if there is one.
    pub(super) async fn part(
        &self,
        name: &str,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<Option<Part>, ApiError> {
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let got = async { self.store.get_opts(&path(name)?, options).await };
        let got = match got.await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.unreadable(name, &error)),
        };
        let range = got.range.clone();
        let body = match got.payload {
            // The store would read 8 KiB at a time.
            GetResultPayload::File(file, _) => {
                let mut file = tokio::fs::File::from_std(file);
                let at = std::io::SeekFrom::Start(range.start);
                let seeked = file.seek(at).await;
                seeked.map_err(|error| self.unreadable(name, &error))?;
                let left = range.end - range.start;
                let chunks = stream::try_unfold(file.take(left), async |mut file| {
                    let mut chunk = Vec::with_capacity(CHUNK);
                    let read = file.read_buf(&mut chunk).await?;
                    Ok::<_, std::io::Error>((read > 0).then_some((chunk, file)))
                });
                Body::from_stream(chunks)
            }
            GetResultPayload::Stream(stream) => Body::from_stream(stream),
        };
        Ok(Some(Part { body, range }))
    }

    /// Size and digests of what is stored.
    pub(super) async fn digest(&self, name: &str) -> Result<Option<Stored>, ApiError> {
        let Some(part) = self.part(name, None).await? else {
            return Ok(None);
        };
        let (mut hash, mut size) = (sha2::Sha256::new(), 0);
        let (mut sha1, mut begins) = (sha1::Sha1::new(), Vec::<u8>::new());
        let mut chunks = part.body.into_data_stream();
        while let Some(chunk) = chunks
            .try_next()
            .await
            .map_err(|error| self.unreadable(name, &error))?
        {
            hash.update(&chunk);
            sha1.update(&chunk);
            let missing = PAYLOAD_MAGIC.len().saturating_sub(begins.len());
            begins.extend(chunk.iter().take(missing));
            size += chunk.len() as u64;
        }
        Ok(Some(Stored {
            size,
            sha256: Sha256(hash.finalize().into()),
            sha1: Sha1(sha1.finalize().into()),
            is_payload: begins == PAYLOAD_MAGIC,
        }))
    }

    /// Replaces a small file; whoever reads it sees all of it, before or after.
    pub(super) async fn put(&self, name: &str, bytes: Bytes) -> Result<(), ApiError> {
        let put = async { self.store.put(&path(name)?, bytes.into()).await };
        put.await.map_err(|error| self.unwritable(name, &error))?;
        Ok(())
    }

    pub(super) async fn upload(&self, name: &str) -> Result<Upload, ApiError> {
        let begun = async { self.store.put_multipart(&path(name)?).await };
        let upload = begun.await.map_err(|error| self.unwritable(name, &error))?;
        Ok(Upload {
            artifacts: self.clone(),
            name: name.to_owned(),
            upload: Some(WriteMultipart::new_with_chunk_size(upload, PART)),
        })
    }

    fn unreadable(&self, name: &str, error: &(dyn std::error::Error + 'static)) -> ApiError {
        let file = name.rsplit('/').next().unwrap_or(name);
        let cause = format!("{}: {}", self.describe(name), whole(error));
        ApiError::internal(
            format!("{file} cannot be read from the server's store"),
            cause,
        )
    }

    fn unwritable(&self, name: &str, error: &(dyn std::error::Error + 'static)) -> ApiError {
        let what = format!("cannot write {}: {}", self.describe(name), whole(error));
        if is_full(error) {
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, what)
                .hint("make room on the server's disk, then publish again")
        } else {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, what)
        }
    }
}

/// Credentials, region and endpoint come from the variables that every client of S3 knows.
fn s3(place: &str, address: &str) -> Result<Arc<dyn ObjectStore>, ArtifactsError> {
    let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
    if bucket.is_empty() {
        return Err(ArtifactsError::Address(place.to_owned()));
    }
    let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok());
    let retry = RetryConfig {
        max_retries: RETRIES,
        retry_timeout: PATIENCE,
        ..RetryConfig::default()
    };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_retry(retry);
    if let Some(endpoint) = endpoint {
        // Whoever writes http:// means it.
        let plain = endpoint.starts_with("http://");
        builder = builder.with_endpoint(endpoint).with_allow_http(plain);
    }
    let store = builder.build()?;
    let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(object_store::Error::from)?;
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

fn path(name: &str) -> Result<Path, object_store::Error> {
    Ok(Path::parse(name)?)
}

/// The error with its causes.
fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull) {
            return true;
        }
        next = error.source();
    }
    false
}

/// A file on its way to the store; there is nothing of it there unless it is committed.
pub(super) struct Upload {
    artifacts: Artifacts,
    name: String,
    upload: Option<WriteMultipart>,
}

impl Upload {
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), ApiError> {
        let Some(upload) = &mut self.upload else {
            return Ok(());
        };
        let room = upload.wait_for_capacity(PARTS).await;
        room.map_err(|error| self.artifacts.unwritable(&self.name, &error))?;
        upload.put(bytes);
        Ok(())
    }

    pub(super) async fn commit(mut self) -> Result<(), ApiError> {
        if let Some(upload) = self.upload.take() {
            let done = upload.finish().await;
            done.map_err(|error| self.artifacts.unwritable(&self.name, &error))?;
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(upload) = self.upload.take() else {
            return;
        };
        // A bucket keeps parts for ever, and asks money for them.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let what = self.artifacts.describe(&self.name);
            runtime.spawn(async move {
                if let Err(error) = upload.abort().await {
                    tracing::warn!("cannot clear away what was sent of {what}: {error}");
                }
            });
        }
    }
}

/// Uploads take less.
const UPLOAD: Duration = Duration::from_secs(24 * 3600);

/// Uploads into a directory that a crash interrupted; if it is `shared`, another server may be at it.
pub(super) fn remove_unfinished(directory: &FsPath, shared: bool) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_unfinished(&entry.path(), shared)?;
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        // The store's way, and that of servers before it.
        let numbered = name.rsplit_once('#').map(|(_, number)| number);
        let unfinished = numbered.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
            || name.ends_with(".part");
        let age = entry.metadata()?.modified()?.elapsed();
        if unfinished && (!shared || age.is_ok_and(|age| age > UPLOAD)) {
            tracing::info!(path = %entry.path().display(), "removing an interrupted upload");
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
