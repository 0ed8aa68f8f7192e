//! Images from a root file system: one layer, and a config that the caller gives.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use kiln_compress::Format;
use kiln_oci::media::{self, Compression};
use kiln_oci::{ContainerConfig, Descriptor, Digest, Hasher, History, ImageConfig, Manifest, Platform, Timestamp};

use crate::BlobWriter;
use crate::error::{Context, Error, Result};
use crate::store::Store;

/// What an imported image is to be.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Its platform.
    pub platform: Platform,
    /// What its containers get: the effect of `--change`.
    pub config: ContainerConfig,
    /// The message; without one, history says `Imported from <source>`.
    pub message: Option<String>,
    /// Where the file system comes from: a file name, a URL without credentials, `-`.
    pub source: String,
    /// When.
    pub created: Timestamp,
}

impl ImportOptions {
    /// Options for a file system from `source`, made now, for this machine.
    pub fn new(source: &str) -> Self {
        Self {
            platform: Platform::host(),
            config: ContainerConfig::default(),
            message: None,
            source: source.to_owned(),
            created: Timestamp::now(),
        }
    }
}

impl Store {
    /// Stores a tar, compressed or not, as a layer: gzip and zstd as they are, anything else as gzip. Returns its blob, and its diff ID.
    /// The tar is taken for a layer: a name that begins with `.wh.` is a whiteout.
    pub fn import_layer(&self, reader: Box<dyn Read + Send>) -> Result<(Descriptor, Digest)> {
        let bad = |e: io::Error| Error::Archive(format!("it can't be read: {e}"));
        let mut head = [0; kiln_compress::MAGIC_LEN];
        let mut reader = reader;
        let n = read_up_to(&mut reader, &mut head).map_err(bad)?;
        let format = kiln_compress::detect(&head[..n]);
        let whole = io::Cursor::new(head[..n].to_vec()).chain(reader);
        let mut blob = self.content().writer()?;
        let mut tar = TarCheck::default();
        let compression = match format.layer_compression() {
            Some(compression @ (Compression::Gzip | Compression::Zstd)) => {
                keep(whole, format, &mut blob, &mut tar)?;
                compression
            }
            _ => {
                recompress(Box::new(whole), format, &mut blob, &mut tar)?;
                Compression::Gzip
            }
        };
        let diff_id = tar.finish()?;
        let (digest, size) = blob.commit(None)?;
        Ok((Descriptor::new(compression.layer_media_type(true), digest, size), diff_id))
    }

    /// Makes an image of one layer, and returns its manifest. It is not recorded yet: give it a name with
    /// [`Images::put`](crate::Images::put), or none with [`Images::put_untagged`](crate::Images::put_untagged).
    pub fn import_image(&self, layer: &Descriptor, diff_id: &Digest, options: &ImportOptions) -> Result<Descriptor> {
        let comment = options.message.clone().unwrap_or_else(|| format!("Imported from {}", options.source));
        let mut config = ImageConfig::empty(&options.platform);
        config.config = options.config.clone();
        config.created = Some(options.created);
        config.rootfs.diff_ids.push(*diff_id);
        config.history.push(History { created: Some(options.created), comment: Some(comment), ..History::default() });
        let encode = |e: serde_json::Error| Error::Archive(e.to_string());
        let bytes = serde_json::to_vec(&config).map_err(encode)?;
        self.content().put(&bytes)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::OCI_MANIFEST.into(),
            config: Descriptor::of(media::OCI_CONFIG, &bytes),
            layers: vec![layer.clone()],
            annotations: BTreeMap::new(),
            extra: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest).map_err(encode)?;
        self.content().put(&bytes)?;
        Ok(Descriptor::of(media::OCI_MANIFEST, &bytes))
    }
}

fn read_up_to(reader: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match reader.read(&mut buf[n..]) {
            Ok(0) => break,
            Ok(m) => n += m,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

fn damaged(e: io::Error) -> Error {
    Error::Archive(format!("it is damaged or cut off: {e}"))
}

/// Stores compressed bytes as they are, then reads the blob again for the diff ID.
fn keep(mut whole: impl Read, format: Format, blob: &mut BlobWriter, tar: &mut TarCheck) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = read_up_to(&mut whole, &mut buffer).map_err(damaged)?;
        if n == 0 {
            break;
        }
        blob.write_all(&buffer[..n]).ctx("write", blob.path())?;
    }
    let file = std::fs::File::open(blob.path()).ctx("open", blob.path())?;
    let mut plain = kiln_compress::decoder_for(format, Box::new(file)).map_err(damaged)?;
    io::copy(&mut plain, tar).map_err(damaged).map(|_| ())
}

fn recompress(whole: Box<dyn Read + Send>, format: Format, blob: &mut BlobWriter, tar: &mut TarCheck) -> Result<()> {
    let mut plain = kiln_compress::decoder_for(format, whole).map_err(damaged)?;
    let path = blob.path().to_path_buf();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut encoder = kiln_compress::Encoder::new(&mut *blob, Compression::Gzip, None, threads)
        .map_err(|e| Error::Archive(e.to_string()))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = read_up_to(&mut plain, &mut buffer).map_err(damaged)?;
        if n == 0 {
            break;
        }
        tar.write_all(&buffer[..n]).map_err(damaged)?;
        encoder.write_all(&buffer[..n]).ctx("write", &path)?;
    }
    encoder.finish().ctx("write", &path).map(|_| ())
}

/// Hashes a tar, and looks at its first header: a file that is no tar must not become a layer.
#[derive(Default)]
struct TarCheck {
    hasher: Hasher,
    head: Vec<u8>,
}

impl Write for TarCheck {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let missing = (512 - self.head.len()).min(buf.len());
        self.head.extend_from_slice(&buf[..missing]);
        self.hasher.update(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TarCheck {
    fn finish(self) -> Result<Digest> {
        let empty = self.head.iter().all(|b| *b == 0);
        let sum: u32 =
            self.head.iter().enumerate().map(|(i, b)| u32::from(if (148..156).contains(&i) { b' ' } else { *b })).sum();
        let field = self.head.get(148..156).map(|f| String::from_utf8_lossy(f).into_owned()).unwrap_or_default();
        let stated = u32::from_str_radix(field.trim_matches(['\0', ' ']), 8).ok();
        if self.head.len() < 512 || !(empty || stated == Some(sum)) {
            return Err(Error::Archive("it is not a tar".into()));
        }
        Ok(self.hasher.finish())
    }
}
