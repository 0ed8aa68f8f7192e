//! Whatever the parser lets through is lowered or refused, but never a panic.
#![allow(clippy::unwrap_used)]

mod support;

use kiln_frontend::{LowerRequest, lower};
use support::*;

const SEEDS: [&str; 4] = [
    "ARG V=3\nFROM --platform=$BUILDPLATFORM alpine:${V} AS a\nARG X=${V:-1}\nENV A=1 B=\"$X y\" PATH=$PATH:/z\nWORKDIR ../x\nRUN a | b\n",
    "FROM base AS a\nCOPY --link --chown=u:g --chmod=u+x --exclude=*.m a* b /d/\nADD --unpack=true https://h/x.git?branch=a#b:c /\nFROM a\nCOPY --from=0 --parents ./x/./y .\n",
    "FROM scratch\nARG T\nRUN --mount=type=cache,target=$T,id=a,sharing=locked --mount=type=secret,id=s,env=E --mount=from=base,target=/m --network=none <<E\n#!/x\nE\nCOPY <<F <<\"G\" /\n$x\nF\nG\n",
    "FROM base\nARG P S U b\nONBUILD COPY --from=b c d\nEXPOSE 80 $P/udp 1-3\nHEALTHCHECK --interval=1s CMD x\nSTOPSIGNAL $S\nVOLUME /a [\"b\"]\nUSER $U\nLABEL a=$b\nSHELL [\"s\"]\nCMD x\nENTRYPOINT [\"y\"]\nMAINTAINER z\n",
];

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

fn mutate(random: &mut Random) -> String {
    let mut text = SEEDS[random.below(SEEDS.len())].to_owned() + SEEDS[random.below(SEEDS.len())];
    const PIECES: [&str; 16] =
        ["$", "${", "}", "\"", "'", "\\", ":", "=", "/", "..", "/./", "--from=", "\n", "FROM a\n", "é", "@sha256:"];
    for _ in 0..random.below(6) + 1 {
        let at = (0..=text.len()).filter(|i| text.is_char_boundary(*i)).nth(random.below(text.len())).unwrap_or(0);
        match random.below(3) {
            0 => text.insert_str(at, PIECES[random.below(PIECES.len())]),
            1 if at < text.len() => drop(text.remove(at)),
            _ => {
                let end = (at + random.below(20)).min(text.len());
                let end = (end..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
                text.replace_range(at..end, PIECES[random.below(PIECES.len())]);
            }
        }
    }
    text
}

#[test]
fn mutated_files_do_not_panic() {
    let mut random = Random(7);
    let images = Images::default()
        .with("onbuild", r#"{"OnBuild":["COPY --from=base $x /","ARG t","RUN --mount=type=$t,target=/m x"]}"#);
    let (mut lowered, mut refused) = (0, 0);
    for _ in 0..6000 {
        let text = mutate(&mut random);
        let parsed = kiln_dockerfile::parse(text.as_bytes(), "Dockerfile");
        if parsed.has_errors() {
            continue;
        }
        let mut request = LowerRequest::new(&parsed.dockerfile, amd64());
        request.build_args = map(&[("P", "53"), ("S", "TERM"), ("T", "/c"), ("U", "u"), ("t", "bind")]);
        request.named_contexts = map(&[("b", "onbuild"), ("alpine:3", "docker-image://onbuild")]);
        match lower(&request, &images) {
            Ok(result) => {
                lowered += 1;
                drop(dump(&result));
            }
            Err(error) => {
                refused += 1;
                assert!(!matches!(error, kiln_frontend::LowerError::Graph(_)), "{error}: {text}");
                assert!(!error.to_string().contains("internal error"), "{error}: {text}");
                if let Some(diagnostic) = error.diagnostic() {
                    assert!(diagnostic.span.end <= text.len(), "{diagnostic:?}: {text}");
                }
            }
        }
    }
    assert!(lowered > 200 && refused > 200, "{lowered} lowered, {refused} refused: the seeds say too little");
}
