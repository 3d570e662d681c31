//! Publishing: the signed manifest first, then the files it names, then the finish that makes the
//! release visible. Until then nothing of it is served.

use std::io;
use std::path::{Path as FsPath, PathBuf};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use release::dsse::{Envelope, MAX_ENVELOPE};
use release::keys::{self, VerifyingKey};
use release::{File, FileName, FlatcarRelease, MANIFEST_FILE, Sha256, Version};
use sha2::Digest as _;

use super::artifacts::{Artifacts, Upload};
use super::catalog::Content;
use super::error::ApiError;
use super::{Shared, auth, catalog, records};
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

/// Sends a file of a release; the manifest first
#[utoipa::path(put, path = "/api/v1/releases/{version}/{file}", tag = "releases",
    params(("version" = String, Path), ("file" = String, Path)), responses((status = 204)), security(("token" = [])))]
pub(super) async fn put_file(
    State(server): State<Shared>,
    Path((version, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    auth::operator(&server, &headers).await?;
    let version = parse_version(&version)?;
    let name: FileName = name
        .parse()
        .map_err(|e: release::FileNameError| bad_request(e))?;
    refuse_finished(&server, &version).await?;
    if name.as_str() == MANIFEST_FILE {
        let bytes = read_envelope(body).await?;
        verify(&server, &bytes, &version)?;
        let _turn = server.publishing.take().await?;
        refuse_finished(&server, &version).await?;
        let artifacts = &server.artifacts;
        artifacts.put(&place(&version, &name), bytes).await?;
    } else {
        let bytes = read_manifest(&server, &version).await?;
        let (release, _) = verify(&server, &bytes, &version)?;
        let file = expected(&release, &name)?;
        let upload = server.artifacts.upload(&place(&version, &name)).await?;
        receive(body, upload, file).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Everything was sent: it is checked, and then visible
#[utoipa::path(post, path = "/api/v1/releases/{version}", tag = "releases",
    params(("version" = String, Path)), responses((status = 201, body = Release)), security(("token" = [])))]
pub(super) async fn finish(
    State(server): State<Shared>,
    Path(version): Path<String>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Release>), ApiError> {
    let who = auth::operator(&server, &headers).await?;
    let version = parse_version(&version)?;
    // The manifest that is checked here has to be the one that is served.
    let _turn = server.publishing.take().await?;
    refuse_finished(&server, &version).await?;
    let bytes = read_manifest(&server, &version).await?;
    let (release, id) = verify(&server, &bytes, &version)?;
    let envelope = (bytes.len() as u64, Sha256::of(&bytes));
    for file in release.files() {
        let flatcar = match &release {
            Content::Flatcar { flatcar } if flatcar.payload.name == file.name => Some(&**flatcar),
            _ => None,
        };
        check_stored(&server.artifacts, file, flatcar, &version).await?;
    }
    let now = (server.clock)();
    let published = server
        .database
        .write_plan(move |db, plan| {
            catalog::publish(db, &release, id, envelope, now)?;
            let subject = format!("release {}", release.version());
            records::activity(db, &who.actor, "uploaded", &subject, "", now)?;
            plan.reload(db, now)?;
            let published = catalog::release(db, release.version())?;
            published.ok_or_else(|| ApiError::internal("the release is gone", release.version()))
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

/// The release that was described, and its id.
fn verify(server: &Shared, bytes: &[u8], version: &Version) -> Result<(Content, Sha256), ApiError> {
    let found = match flatcar(bytes)? {
        // Nobody of ours signs it, and no host of ours is offered it.
        Some(flatcar) => {
            let flatcar = Box::new(flatcar);
            (Content::Flatcar { flatcar }, Sha256::of(bytes))
        }
        None => signed(server, bytes)?,
    };
    if found.0.version() == version {
        Ok(found)
    } else {
        Err(unprocessable(format!(
            "{MANIFEST_FILE} is for release {}, but was sent as release {version}",
            found.0.version()
        )))
    }
}

fn signed(server: &Shared, bytes: &[u8]) -> Result<(Content, Sha256), ApiError> {
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
    let manifest = Box::new((*release).clone());
    Ok((Content::Orlop(manifest), release.id()))
}

/// The description of a release of Flatcar's, if it is one.
fn flatcar(bytes: &[u8]) -> Result<Option<FlatcarRelease>, ApiError> {
    #[derive(serde::Deserialize)]
    struct Described {
        flatcar: Option<serde_json::Value>,
    }
    let described = serde_json::from_slice::<Described>(bytes);
    let Ok(Described { flatcar: Some(it) }) = described else {
        return Ok(None);
    };
    let refused = |what: String| unprocessable(format!("the release of Flatcar's: {what}"));
    let release: FlatcarRelease =
        serde_json::from_value(it).map_err(|error| refused(error.to_string()))?;
    release
        .check()
        .map_err(|error| refused(error.to_string()))?;
    Ok(Some(release))
}

async fn read_envelope(body: Body) -> Result<Bytes, ApiError> {
    let limited = http_body_util::Limited::new(body, MAX_ENVELOPE);
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("{MANIFEST_FILE} is larger than {MAX_ENVELOPE} bytes"),
        )),
        Err(error) => Err(broken_off(MANIFEST_FILE, &*error)),
    }
}

async fn read_manifest(server: &Shared, version: &Version) -> Result<Bytes, ApiError> {
    let name = format!("{version}/{MANIFEST_FILE}");
    server.artifacts.read(&name).await?.ok_or_else(|| {
        ApiError::new(
            StatusCode::CONFLICT,
            format!("release {version} has no {MANIFEST_FILE} yet"),
        )
        .hint(format!(
            "send {MANIFEST_FILE} first: it says which files belong to the release"
        ))
    })
}

fn expected<'a>(release: &'a Content, name: &FileName) -> Result<&'a File, ApiError> {
    let files = release.files();
    let names = || files.iter().map(|file| file.name.as_str());
    let found = files.iter().find(|file| file.name == *name).copied();
    found.ok_or_else(|| {
        unprocessable(format!(
            "the manifest of release {} has no file {name}",
            release.version()
        ))
        .hint(format!("it has {}", names().collect::<Vec<_>>().join(", ")))
    })
}

const DAMAGED: &str =
    "it was changed after the build, or on the way: send it again, or build again";

/// Streams a body to its place; the file is there only once it is complete and right.
async fn receive(mut body: Body, mut upload: Upload, file: &File) -> Result<(), ApiError> {
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
        upload.write(data).await?;
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
    upload.commit().await
}

/// Reads a stored file again: it may be left over from another build of this version.
async fn check_stored(
    artifacts: &Artifacts,
    file: &File,
    payload_of: Option<&FlatcarRelease>,
    version: &Version,
) -> Result<(), ApiError> {
    let wrong = |what: &str| {
        unprocessable(format!(
            "release {version} is not complete: {} {what}",
            file.name
        ))
        .hint(format!("send {} again, then finish again", file.name))
    };
    match artifacts.digest(&place(version, &file.name)).await? {
        Some(found) if (found.size, found.sha256) == (file.size, file.sha256) => match payload_of {
            Some(_) if !found.is_payload => Err(wrong("is no payload for update_engine")),
            Some(flatcar) if found.sha1 != flatcar.payload_sha1 => {
                Err(wrong("has another SHA-1 than was said"))
            }
            _ => Ok(()),
        },
        Some(_) => Err(wrong("is not what the manifest says")),
        None => Err(wrong("is missing")),
    }
}

fn place(version: &Version, name: &FileName) -> String {
    format!("{version}/{name}")
}

fn broken_off(name: &str, error: &dyn std::error::Error) -> ApiError {
    bad_request(format!("the upload of {name} broke off: {error}")).hint("send it again")
}
