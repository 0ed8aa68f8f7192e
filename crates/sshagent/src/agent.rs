//! What an agent answers.

use std::io::{self, Read, Write};

use crate::key::Key;
use crate::wire::{put_string, read_message, take_string, take_u32, write_message};

const FAILURE: &[u8] = &[5];
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// Signs with private keys that it never shows.
#[derive(Debug)]
pub struct Agent {
    keys: Vec<Key>,
}

impl Agent {
    /// With these keys, offered in this order.
    pub fn new(keys: Vec<Key>) -> Self {
        Self { keys }
    }

    /// Its keys.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// The answer to one message, both without their lengths.
    pub fn answer(&self, message: &[u8]) -> Vec<u8> {
        match message.split_first() {
            Some((&REQUEST_IDENTITIES, _)) => self.list(),
            Some((&SIGN_REQUEST, body)) => self.sign(body).unwrap_or_else(|| FAILURE.to_vec()),
            _ => FAILURE.to_vec(),
        }
    }

    fn list(&self) -> Vec<u8> {
        let mut out = vec![IDENTITIES_ANSWER];
        out.extend((self.keys.len() as u32).to_be_bytes());
        for key in &self.keys {
            put_string(&mut out, key.public());
            put_string(&mut out, key.comment().as_bytes());
        }
        out
    }

    fn sign(&self, mut body: &[u8]) -> Option<Vec<u8>> {
        let blob = take_string(&mut body)?;
        let data = take_string(&mut body)?;
        let flags = take_u32(&mut body)?;
        let key = self.keys.iter().find(|k| k.public() == blob)?;
        let mut out = vec![SIGN_RESPONSE];
        put_string(&mut out, &key.sign(data, flags)?);
        Some(out)
    }
}

/// Answers one client until it is gone.
pub fn serve(agent: &Agent, from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    while let Some(message) = read_message(from)? {
        write_message(to, &agent.answer(&message))?;
    }
    Ok(())
}

/// Passes one client's requests on to another agent, and its answers back; what is neither a question for keys nor for a
/// signature is refused here.
pub fn forward<A: Read + Write>(from: &mut impl Read, to: &mut impl Write, agent: &mut A) -> io::Result<()> {
    while let Some(message) = read_message(from)? {
        if !matches!(message.first(), Some(&REQUEST_IDENTITIES | &SIGN_REQUEST)) {
            write_message(to, FAILURE)?;
            continue;
        }
        write_message(agent, &message)?;
        let Some(answer) = read_message(agent)? else { return Ok(()) };
        write_message(to, &answer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_cannot_change_the_users_agent() {
        // REMOVE_ALL_IDENTITIES, then a question that must arrive.
        let mut asked = Vec::new();
        write_message(&mut asked, &[19]).unwrap();
        write_message(&mut asked, &[REQUEST_IDENTITIES]).unwrap();
        struct Other(Vec<u8>, io::Cursor<Vec<u8>>);
        impl Read for Other {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.1.read(buf)
            }
        }
        impl Write for Other {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                self.0.write(buf)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut answer = Vec::new();
        write_message(&mut answer, &[IDENTITIES_ANSWER, 0, 0, 0, 0]).unwrap();
        let mut other = Other(Vec::new(), io::Cursor::new(answer));
        let mut out = Vec::new();
        forward(&mut asked.as_slice(), &mut out, &mut other).unwrap();
        assert_eq!(other.0, [0, 0, 0, 1, REQUEST_IDENTITIES], "only the question was passed on");
        assert_eq!(out, [0, 0, 0, 1, 5, 0, 0, 0, 5, IDENTITIES_ANSWER, 0, 0, 0, 0]);
    }

    #[test]
    fn nonsense_is_refused_and_lengths_are_bounded() {
        let agent = Agent::new(Vec::new());
        for message in [&[][..], &[SIGN_REQUEST], &[SIGN_REQUEST, 255, 255, 255, 255, 1], &[17, 1, 2], &[27]] {
            assert_eq!(agent.answer(message), FAILURE);
        }
        assert_eq!(agent.answer(&[REQUEST_IDENTITIES]), [IDENTITIES_ANSWER, 0, 0, 0, 0]);
        assert!(serve(&agent, &mut [255, 255, 255, 255, 11].as_slice(), &mut Vec::new()).is_err());
        assert!(serve(&agent, &mut [0, 0, 0, 0].as_slice(), &mut Vec::new()).is_err());
    }
}
