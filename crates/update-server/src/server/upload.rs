//! Publishing: the signed manifest first, then the files it names, then the finish that makes the
//! release visible. Until then nothing of it is served.

use std::io;
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use release::dsse::{Envelope, MAX_ENVELOPE};
use release::keys::{self, VerifyingKey};
use release::{File, FileName, MANIFEST_FILE, Manifest, Sha256, Verified, Version};
use sha2::Digest as _;
use tokio::io::AsyncWriteExt as _;

use super::error::ApiError;
use super::{Shared, catalog};
use crate::api::Release;

/// The keys in a directory, and the files in it that are none.
pub(super) struct Keys {
    pub(super) trusted: Vec<VerifyingKey>,
    pub(super) unreadable: Vec<(PathBuf, String)>,
}

/// Reads every `*.pub`.
pub(super) fn read_keys(directory: &FsPath) -> io::Result<Keys> {
    let mut found = Keys {
        trusted: vec![],
        unreadable: vec![],
    };
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "pub") {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|e| e.to_string());
        match text.and_then(|text| keys::public_from_text(&text).map_err(|e| e.to_string())) {
            Ok(key) => found.trusted.push(key),
            Err(error) => found.unreadable.push((path, error)),
        }
    }
    Ok(found)
}

/// `PUT /api/v1/releases/VERSION/FILE`
pub(super) async fn put_file(
    State(server): State<Shared>,
    Path((version, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    server.token.check(&headers)?;
    let version = parse_version(&version)?;
    let name: FileName = name
        .parse()
        .map_err(|e: release::FileNameError| bad_request(e))?;
    refuse_finished(&server, &version).await?;
    let directory = server.releases.join(version.to_string());
    if name.as_str() == MANIFEST_FILE {
        let bytes = read_envelope(body).await?;
        verify(&server, &bytes, &version)?;
        let _one_at_a_time = server.publishing.lock().await;
        refuse_finished(&server, &version).await?;
        tokio::fs::create_dir_all(&directory)
            .await
            .map_err(|e| write_failed(&directory, &e))?;
        let mut part = Part::create(&directory, &name).await?;
        part.write(&bytes).await?;
        part.commit(&directory.join(&name)).await?;
    } else {
        let release = load_manifest(&server, &directory, &version).await?;
        let file = expected(&release, &name)?;
        receive(body, &directory, file).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /api/v1/releases/VERSION`: everything is there, check it and show it.
pub(super) async fn finish(
    State(server): State<Shared>,
    Path(version): Path<String>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Release>), ApiError> {
    server.token.check(&headers)?;
    let version = parse_version(&version)?;
    // The manifest that is checked here has to be the one that is served.
    let _one_at_a_time = server.publishing.lock().await;
    refuse_finished(&server, &version).await?;
    let directory = server.releases.join(version.to_string());
    let bytes = read_manifest(&directory, &version).await?;
    let release = verify(&server, &bytes, &version)?;
    let envelope = (bytes.len() as u64, Sha256::of(&bytes));
    for file in release.files() {
        check_stored(&directory, file, &version).await?;
    }
    sync_directory(&directory).await?;
    sync_directory(&server.releases).await?;
    let now = (server.clock)();
    let published = server
        .database
        .write(move |db| {
            catalog::publish(db, &release, envelope, now)?;
            let published = catalog::release(db, &release.version)?;
            published.ok_or_else(|| ApiError::internal("the release is gone", &release.version))
        })
        .await?;
    tracing::info!(%version, id = %published.id, "release finished");
    Ok((StatusCode::CREATED, Json(catalog::describe(published, &[]))))
}

fn bad_request(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, error.to_string())
}

fn unprocessable(error: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error)
}

fn parse_version(text: &str) -> Result<Version, ApiError> {
    text.parse()
        .map_err(|e: release::VersionError| bad_request(e))
}

async fn refuse_finished(server: &Shared, version: &Version) -> Result<(), ApiError> {
    let wanted = version.clone();
    match server
        .database
        .read(move |db| catalog::release(db, &wanted))
        .await?
    {
        None => Ok(()),
        Some(_) => Err(catalog::finished(version)),
    }
}

fn verify(
    server: &Shared,
    bytes: &[u8],
    version: &Version,
) -> Result<Verified<Manifest>, ApiError> {
    let keys = read_keys(&server.keys)
        .map_err(|e| ApiError::internal("the server's key directory cannot be read", e))?;
    let release = Envelope::verify(bytes, &keys.trusted).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}"));
        unprocessable(format!(
            "{MANIFEST_FILE} is refused: {error}{}",
            cause.unwrap_or_default()
        ))
        .hint(format!(
            "sign with a key whose .pub file is in the server's key directory ({})",
            server.keys.display()
        ))
    })?;
    if release.version == *version {
        Ok(release)
    } else {
        Err(unprocessable(format!(
            "{MANIFEST_FILE} is for release {}, but was sent as release {version}",
            release.version
        )))
    }
}

async fn read_envelope(body: Body) -> Result<Vec<u8>, ApiError> {
    let limited = http_body_util::Limited::new(body, MAX_ENVELOPE);
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes().to_vec()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("{MANIFEST_FILE} is larger than {MAX_ENVELOPE} bytes"),
        )),
        Err(error) => Err(broken_off(MANIFEST_FILE, &*error)),
    }
}

async fn read_manifest(directory: &FsPath, version: &Version) -> Result<Vec<u8>, ApiError> {
    match tokio::fs::read(directory.join(MANIFEST_FILE)).await {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("release {version} has no {MANIFEST_FILE} yet"),
        )
        .hint(format!(
            "send {MANIFEST_FILE} first: it says which files belong to the release"
        ))),
        Err(error) => Err(ApiError::internal("the manifest cannot be read", error)),
    }
}

async fn load_manifest(
    server: &Shared,
    directory: &FsPath,
    version: &Version,
) -> Result<Verified<Manifest>, ApiError> {
    verify(server, &read_manifest(directory, version).await?, version)
}

fn expected<'a>(release: &'a Manifest, name: &FileName) -> Result<&'a File, ApiError> {
    release
        .files()
        .find(|file| file.name == *name)
        .ok_or_else(|| {
            let names: Vec<_> = release.files().map(|file| file.name.as_str()).collect();
            unprocessable(format!(
                "the manifest of release {} has no file {name}",
                release.version
            ))
            .hint(format!("it has {}", names.join(", ")))
        })
}

const DAMAGED: &str =
    "it was changed after the build, or on the way: send it again, or build again";

/// Streams a body into `directory`; the file has its name only once it is complete and right.
async fn receive(mut body: Body, directory: &FsPath, file: &File) -> Result<(), ApiError> {
    let mut part = Part::create(directory, &file.name).await?;
    let mut hash = sha2::Sha256::new();
    let mut size = 0u64;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken_off(file.name.as_str(), &error))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        size += data.len() as u64;
        if size > file.size {
            break;
        }
        hash.update(&data);
        part.write(&data).await?;
    }
    if size != file.size {
        let more = if size > file.size { "more than " } else { "" };
        let got = size.min(file.size);
        return Err(unprocessable(format!(
            "{} has {more}{got} bytes, the manifest says {}",
            file.name, file.size
        ))
        .hint(DAMAGED));
    }
    let got = Sha256(hash.finalize().into());
    if got != file.sha256 {
        return Err(unprocessable(format!(
            "{} has the SHA-256 {got}, the manifest says {}",
            file.name, file.sha256
        ))
        .hint(DAMAGED));
    }
    part.commit(&directory.join(&file.name)).await
}

/// Reads a stored file again: it may be left over from another build of this version.
async fn check_stored(directory: &FsPath, file: &File, version: &Version) -> Result<(), ApiError> {
    let path = directory.join(&file.name);
    let hashed = tokio::task::spawn_blocking(move || hash_file(&path)).await;
    let wrong = |what: &str| {
        unprocessable(format!(
            "release {version} is not complete: {} {what}",
            file.name
        ))
        .hint(format!("send {} again, then finish again", file.name))
    };
    match hashed {
        Ok(Ok((size, sha256))) if (size, sha256) == (file.size, file.sha256) => Ok(()),
        Ok(Ok(_)) => Err(wrong("is not what the manifest says")),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(wrong("is missing")),
        Ok(Err(error)) => Err(ApiError::internal(
            format!("{} cannot be read", file.name),
            error,
        )),
        Err(error) => Err(ApiError::internal(
            format!("{} cannot be read", file.name),
            error,
        )),
    }
}

fn hash_file(path: &FsPath) -> io::Result<(u64, Sha256)> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = sha2::Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok((size, Sha256(hash.finalize().into()))),
            read => {
                hash.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
}

fn broken_off(name: &str, error: &dyn std::error::Error) -> ApiError {
    bad_request(format!("the upload of {name} broke off: {error}")).hint("send it again")
}

fn write_failed(path: &FsPath, error: &io::Error) -> ApiError {
    let what = format!("cannot write {}: {error}", path.display());
    if error.kind() == io::ErrorKind::StorageFull {
        ApiError::new(StatusCode::INSUFFICIENT_STORAGE, what)
            .hint("make room on the server's disk, then publish again")
    } else {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, what)
    }
}

async fn sync_directory(path: &FsPath) -> Result<(), ApiError> {
    let synced = async { tokio::fs::File::open(path).await?.sync_all().await };
    synced.await.map_err(|e| write_failed(path, &e))
}

/// A file on its way; removed again unless it is committed.
struct Part {
    path: PathBuf,
    file: tokio::fs::File,
    committed: bool,
}

impl Part {
    async fn create(directory: &FsPath, name: &FileName) -> Result<Self, ApiError> {
        // Two uploads of one file at the same time must not share a part.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".{name}.{number}.part"));
        let file = tokio::fs::File::create(&path)
            .await
            .map_err(|e| write_failed(&path, &e))?;
        Ok(Self {
            path,
            file,
            committed: false,
        })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        self.file
            .write_all(bytes)
            .await
            .map_err(|e| write_failed(&self.path, &e))
    }

    async fn commit(mut self, to: &FsPath) -> Result<(), ApiError> {
        let done = async {
            self.file.flush().await?;
            self.file.sync_all().await?;
            tokio::fs::rename(&self.path, to).await
        };
        done.await.map_err(|e| write_failed(&self.path, &e))?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.committed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
