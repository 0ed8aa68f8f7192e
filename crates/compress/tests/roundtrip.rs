//! What comes out of an encoder, read back by our decoder and by other tools.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use kiln_compress::{Encoder, Format, decoder, detect};
use kiln_oci::media::Compression;
use proptest::prelude::*;

/// Bytes that compress somewhat, with matches across block borders.
fn sample(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(length + 64);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if state & 3 == 0 && out.len() > 70_000 {
            let start = out.len() - 1 - (state >> 8) as usize % 60_000;
            let end = (start + 40).min(out.len());
            out.extend_from_within(start..end);
        } else {
            out.extend_from_slice(&state.to_le_bytes()[..6]);
            out.extend_from_slice(b"words ");
        }
    }
    out.truncate(length);
    out
}

fn encode(data: &[u8], compression: Compression, level: Option<i32>, threads: usize, write: usize) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression, level, threads).expect("encoder");
    for chunk in data.chunks(write.max(1)) {
        encoder.write_all(chunk).expect("write");
    }
    encoder.finish().expect("finish")
}

fn decode(data: &[u8]) -> io::Result<(Format, Vec<u8>)> {
    let (format, mut reader) = decoder(Box::new(io::Cursor::new(data.to_vec())))?;
    let mut out = Vec::new();
    reader.read_to_end(&mut out)?;
    Ok((format, out))
}

/// `data` through a command, or `None` when the command is not installed.
fn through(command: &[&str], data: &[u8]) -> Option<(bool, Vec<u8>)> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take().expect("stdin");
    let data = data.to_vec();
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&data);
    });
    let output = child.wait_with_output().expect("output");
    feeder.join().expect("feeder");
    Some((output.status.success(), output.stdout))
}

#[test]
fn bytes_do_not_depend_on_threads_or_writes() {
    let data = sample(9 * 1024 * 1024 + 12_345);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let one = encode(&data, compression, None, 1, data.len());
        assert!(one.len() < data.len());
        for (threads, write) in [(1, 1000), (2, 65_536), (3, 777_777), (8, 3_000_000), (16, 9_000_000)] {
            let other = encode(&data, compression, None, threads, write);
            assert!(other == one, "{compression:?} with {threads} threads and writes of {write} differs");
        }
        let (format, back) = decode(&one).expect("decode");
        assert_eq!(format, Format::from(compression));
        assert!(back == data);
    }
}

#[test]
fn sizes_around_the_block_border() {
    let block = 1024 * 1024;
    let data = sample(2 * block + 1);
    for size in [0, 1, block - 1, block, block + 1, 2 * block, 2 * block + 1] {
        for compression in [Compression::Uncompressed, Compression::Gzip, Compression::Zstd] {
            let one = encode(&data[..size], compression, None, 1, usize::MAX);
            let two = encode(&data[..size], compression, None, 2, 4096);
            assert!(one == two, "{compression:?} of {size}");
            assert!(decode(&one).expect("decode").1 == data[..size], "{compression:?} of {size}");
        }
    }
}

#[test]
fn every_level_is_read_back() {
    let data = sample(700_000);
    for (compression, top) in [(Compression::Gzip, 9), (Compression::Zstd, 22)] {
        for level in 0..=top {
            let packed = encode(&data, compression, Some(level), 2, 100_000);
            assert!(decode(&packed).expect("decode").1 == data, "{compression:?} level {level}");
        }
        for level in [-1, top + 1] {
            let error = Encoder::new(Vec::new(), compression, Some(level), 1).err().expect("no such level");
            assert!(error.to_string().contains(&format!("use 0 to {top}")), "{error}");
        }
    }
}

#[test]
fn other_tools_read_ours() {
    let data = sample(3_000_000);
    let gzip = encode(&data, Compression::Gzip, None, 2, 1 << 20);
    let zstd = encode(&data, Compression::Zstd, None, 2, 1 << 20);
    for (tool, packed) in [(["gzip", "-dc"], &gzip), (["pigz", "-dc"], &gzip), (["zstd", "-dc"], &zstd)] {
        match through(&tool, packed) {
            Some((success, out)) => assert!(success && out == data, "{tool:?}"),
            None => eprintln!("skipped: {} is not installed", tool[0]),
        }
    }
}

#[test]
fn one_gzip_member_with_a_constant_header() {
    let packed = encode(&sample(2_000_000), Compression::Gzip, None, 2, 1 << 20);
    assert_eq!(packed[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    let mut member = flate2::bufread::GzDecoder::new(&packed[..]);
    io::copy(&mut member, &mut io::sink()).expect("member");
    assert!(member.into_inner().is_empty());
}

#[test]
fn we_read_other_tools() {
    let data = sample(400_000);
    let tools: [(&[&str], Format); 5] = [
        (&["gzip", "-c"], Format::Gzip),
        (&["bzip2", "-c"], Format::Bzip2),
        (&["xz", "-c"], Format::Xz),
        (&["xz", "-9e", "-c"], Format::Xz),
        (&["zstd", "-c"], Format::Zstd),
    ];
    for (tool, format) in tools {
        let Some((success, packed)) = through(tool, &data) else {
            eprintln!("skipped: {} is not installed", tool[0]);
            continue;
        };
        assert!(success);
        let (found, back) = decode(&packed).expect("decode");
        assert_eq!(found, format);
        assert!(back == data);
        // Several streams one after the other are one stream to all four formats.
        let twice = [&packed[..], &packed[..]].concat();
        assert!(decode(&twice).expect("twice").1 == [&data[..], &data[..]].concat(), "{tool:?} twice");
        for cut in [1, 4, 9, packed.len() / 2, packed.len() - 12] {
            let error = decode(&packed[..packed.len() - cut]).expect_err("truncated");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{tool:?} cut by {cut}: {error}");
        }
        let mut broken = packed.clone();
        broken[packed.len() / 2] ^= 0x55;
        decode(&broken).expect_err("a flipped bit is an error");
    }
}

#[test]
fn our_own_streams_truncated_anywhere() {
    let data = sample(1_300_000);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let packed = encode(&data, compression, None, 2, 1 << 20);
        let mut cut = packed.len() - 1;
        while cut > 10 {
            let error = decode(&packed[..cut]).expect_err("truncated");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{compression:?} at {cut}: {error}");
            cut = if packed.len() - cut < 20 { cut - 1 } else { cut * 2 / 3 };
        }
    }
}

#[test]
fn skippable_frames_around_zstd() {
    let data = sample(100_000);
    let frame = encode(&data, Compression::Zstd, None, 1, usize::MAX);
    let skip = |kind: u8, length: usize| {
        let mut out = vec![0x50 + kind, 0x2a, 0x4d, 0x18];
        out.extend((length as u32).to_le_bytes());
        out.extend(vec![0xaa; length]);
        out
    };
    let stream = [skip(0, 4), frame.clone(), skip(3, 70_000), frame.clone(), skip(15, 0)].concat();
    assert_eq!(detect(&stream), Format::Zstd);
    assert!(decode(&stream).expect("frames").1 == [&data[..], &data[..]].concat());
    let cut = &stream[..stream.len() - 2];
    assert_eq!(decode(cut).expect_err("truncated skippable frame").kind(), io::ErrorKind::UnexpectedEof);
    decode(&[&frame[..], b"garbage!"].concat()).expect_err("garbage after a frame");
}

#[test]
fn after_the_last_gzip_member_only_zeros() {
    let data = sample(10_000);
    let member = encode(&data, Compression::Gzip, None, 1, usize::MAX);
    for zeros in [1, 17, 1_000_000] {
        let padded = [&member[..], &vec![0; zeros][..]].concat();
        assert!(decode(&padded).expect("padding").1 == data);
    }
    decode(&[&member[..], b"\0\0\0x"].concat()).expect_err("something hidden behind zeros");
    decode(&[&member[..], b"x"].concat()).expect_err("garbage");
}

#[test]
fn an_xz_header_cannot_ask_for_gigabytes() {
    let Some((_, packed)) = through(&["xz", "--lzma2=preset=6,dict=512MiB", "-c"], b"small") else {
        eprintln!("skipped: xz is not installed");
        return;
    };
    let error = decode(&packed).expect_err("512 MiB of dictionary");
    assert!(error.to_string().contains("mem"), "{error}");
}

#[test]
fn a_zstd_header_cannot_ask_for_gigabytes() {
    // Magic, frame header descriptor without content size, window descriptor for 2^31 bytes, one empty last block.
    let stream = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0];
    decode(&stream).expect_err("2 GiB of window");
}

#[test]
fn a_writer_that_fails_stops_the_encoder() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            if self.0 < buf.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0 -= buf.len();
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let data = sample(6_000_000);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut encoder = Encoder::new(Full(1_000_000), compression, None, 2).expect("encoder");
        let error = match encoder.write_all(&data) {
            Err(error) => error,
            Ok(()) => encoder.finish().err().expect("the disk is full"),
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_bytes_round_trip(parts in prop::collection::vec((any::<u8>(), 0usize..200_000), 0..6), noise in prop::collection::vec(any::<u8>(), 0..5000), write in 1usize..300_000) {
        let mut data = noise.clone();
        for (byte, count) in parts {
            data.resize(data.len() + count, byte);
            data.extend(&noise);
        }
        for compression in [Compression::Gzip, Compression::Zstd] {
            let packed = encode(&data, compression, None, 2, write);
            prop_assert!(packed == encode(&data, compression, None, 1, usize::MAX));
            prop_assert!(decode(&packed).expect("decode").1 == data);
        }
    }

    #[test]
    fn noise_never_panics(magic in 0usize..5, noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        let magics: [&[u8]; 5] = [&[0x1f, 0x8b, 8], &[0x28, 0xb5, 0x2f, 0xfd], b"BZh91AY&SY", &[0xfd, b'7', b'z', b'X', b'Z', 0], b""];
        let _ = decode(&[magics[magic], &noise].concat());
    }
}
