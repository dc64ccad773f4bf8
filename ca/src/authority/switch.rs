//! The next root takes the place of the one that signs, in steps. Each does nothing where it was done before, so that a
//! switch which a crash or a full disk cuts short is done again from the beginning, by this process or the next one.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rustls_pki_types::CertificateDer;

use super::files::{self, NEXT};
use super::rotation::{Next, remove_directory, retired_key};
use super::{Authority, AuthorityError};
use crate::file::{FileError, PUBLIC, write_atomically};
use crate::issued::chain_to_pem;

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The root of now is written down as one of before.
    Trust,
    /// So is the next root as the root of now signs it.
    Vouch,
    /// The next issuing certificate takes its place, with its key. From here on the switch only goes on.
    Sign,
    /// The key of the root of now gets another name.
    Retire,
    /// The next root's certificate takes its place.
    Root,
    /// So does its key.
    Key,
    /// What was aside goes.
    Clear,
}

const ALL: [Step; 7] =
    [Step::Trust, Step::Vouch, Step::Sign, Step::Retire, Step::Root, Step::Key, Step::Clear];
/// What is left when the next issuing certificate has taken its place.
const FINISH: [Step; 4] = [Step::Retire, Step::Root, Step::Key, Step::Clear];

impl Authority {
    /// Has the next root sign from now on. False where there is none.
    pub fn switch(&mut self) -> Result<bool, AuthorityError> {
        let Some(next) = &self.next else { return Ok(false) };
        ALL.iter().try_for_each(|step| self.step(*step, next))?;
        let (_, root) = files::read_trust(&self.place.directory)?;
        let issuing = files::read_issuing(&self.place)?;
        let (before, cross) = (self.before_after(), self.cross_after(next));
        (self.root, self.issuing, self.before, self.cross, self.next) = (root, issuing, before, cross, None);
        Ok(true)
    }

    /// The roots of before, when the switch is done.
    fn before_after(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.root).chain(&self.before).cloned().collect()
    }

    fn cross_after(&self, next: &Next) -> Vec<CertificateDer<'static>> {
        next.cross.iter().chain(&self.cross).cloned().collect()
    }

    fn step(&self, step: Step, next: &Next) -> Result<(), AuthorityError> {
        let directory = &self.place.directory;
        match step {
            Step::Trust => files::write_certificates(&directory.join(files::TRUSTED), &self.before_after()),
            Step::Vouch => files::write_certificates(&directory.join(files::CROSS), &self.cross_after(next)),
            Step::Sign if files::read_issuing(&self.place)?.chain == next.chain => Ok(()),
            Step::Sign => {
                let staged = files::read_issuing(&self.place.below(NEXT))?;
                files::write_issuing(&self.place, &staged.chain, staged.issuer.key())
            }
            step => take(directory, &next.root, step),
        }
    }
}

/// Does what is left of a switch that was cut short.
pub(super) fn finish(directory: &Path, next: &CertificateDer<'static>) -> Result<(), AuthorityError> {
    FINISH.iter().try_for_each(|step| take(directory, next, *step))
}

/// Takes one of the steps after which nothing goes back. Where the root stands is read from the disk each time: what this
/// process remembers is from before.
fn take(directory: &Path, next: &CertificateDer<'static>, step: Step) -> Result<(), AuthorityError> {
    let key = directory.join(files::ROOT_KEY);
    match step {
        Step::Retire => {
            let (_, root) = files::read_trust(directory)?;
            // Once the next root stands, the key beside it is its own.
            if root == *next { Ok(()) } else { rename(&key, &retired_key(directory, &root)) }
        }
        Step::Root => {
            let pem = chain_to_pem(std::slice::from_ref(next));
            Ok(write_atomically(&directory.join(files::ROOT_CERTIFICATE), pem.as_bytes(), PUBLIC)?)
        }
        Step::Key => rename(&directory.join(NEXT).join(files::ROOT_KEY), &key),
        Step::Clear => remove_directory(&directory.join(NEXT)),
        Step::Trust | Step::Vouch | Step::Sign => Ok(()),
    }
}

/// Renames a file, if it is there.
fn rename(from: &Path, to: &Path) -> Result<(), AuthorityError> {
    match fs::rename(from, to) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(FileError::Write { path: to.to_owned(), source }.into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::SystemTime;

    use baremesh_model::name::TrustDomain;

    use super::*;
    use crate::authority::Standing;
    use crate::file::read_secret;

    fn copy(from: &Path, to: &Path) {
        fs::create_dir(to).expect("a directory");
        for entry in fs::read_dir(from).expect("entries").map(|entry| entry.expect("an entry")) {
            let to = to.join(entry.file_name());
            match entry.file_type().expect("a type").is_dir() {
                true => copy(&entry.path(), &to),
                false => _ = fs::copy(entry.path(), to).expect("copied"),
            }
        }
    }

    /// After a switch: who signs, which keys there are, how long a chain is, and nothing aside.
    fn check(authority: &Authority, directory: &Path, expected: &Expected, when: &str) {
        let standing: Vec<_> =
            authority.standing().into_iter().map(|(root, is)| (root.clone(), is)).collect();
        let wanted = [(expected.next.clone(), Standing::Signs), (expected.former.clone(), Standing::Before)];
        assert_eq!(standing, wanted, "{when}");
        let key = |path: PathBuf| read_secret(&path).expect("a key");
        assert_eq!(key(directory.join(files::ROOT_KEY)), expected.next_key, "{when}");
        assert_eq!(key(retired_key(directory, &expected.former)), expected.former_key, "{when}");
        assert_eq!(authority.cross.len(), 1, "{when}: chains have one more certificate and no second one");
        assert!(!directory.join(NEXT).exists(), "{when}");
    }

    struct Expected {
        former: CertificateDer<'static>,
        next: CertificateDer<'static>,
        former_key: Vec<u8>,
        next_key: Vec<u8>,
    }

    #[test]
    fn a_switch_goes_on_wherever_it_was_cut_short() {
        let place = tempfile::tempdir().expect("a directory");
        let (staged, now) = (place.path().join("staged"), SystemTime::now());
        let domain = TrustDomain::new("td").expect("a domain");
        let mut authority = Authority::create(&staged, &domain, now).expect("an authority");
        authority.stage_root(now, now).expect("staged");
        let key = |path: PathBuf| read_secret(&path).expect("a key");
        let expected = Expected {
            former: authority.root.clone(),
            next: authority.next.as_ref().expect("a next root").root.clone(),
            former_key: key(staged.join(files::ROOT_KEY)),
            next_key: key(staged.join(NEXT).join(files::ROOT_KEY)),
        };
        for done in 0..=ALL.len() {
            let cut_short = |name: &str| {
                let directory = place.path().join(format!("{name}-{done}"));
                copy(&staged, &directory);
                let begun = Authority::open(&directory, now).expect("opened");
                let next = begun.next.as_ref().expect("a next root");
                ALL[..done].iter().for_each(|step| begun.step(*step, next).expect("a step"));
                (directory, begun)
            };
            let when = format!("after {:?}", &ALL[..done]);
            let (directory, mut same) = cut_short("same");
            assert!(same.switch().expect("switched"), "{when}");
            check(&same, &directory, &expected, &format!("{when}, in the same process"));
            let (directory, _) = cut_short("another");
            let mut another = Authority::open(&directory, now).expect("opened");
            let pending = done < 3;
            assert_eq!(another.next.is_some(), pending, "{when}");
            assert_eq!(another.cross.len(), usize::from(!pending), "{when}: chains are as long as before");
            assert_eq!(another.switch().expect("switched"), pending, "{when}");
            check(&another, &directory, &expected, &format!("{when}, by the next process"));
        }
    }

    #[test]
    fn what_was_aside_and_cannot_be_removed_takes_no_key_with_it() {
        let place = tempfile::tempdir().expect("a directory");
        let (directory, now) = (place.path().join("ca"), SystemTime::now());
        let domain = TrustDomain::new("td").expect("a domain");
        let mut authority = Authority::create(&directory, &domain, now).expect("an authority");
        authority.stage_root(now, now).expect("staged");
        let key = |path: PathBuf| read_secret(&path).expect("a key");
        let (former, former_key) = (authority.root.clone(), key(directory.join(files::ROOT_KEY)));
        let next_key = key(directory.join(NEXT).join(files::ROOT_KEY));
        // A directory where its certificate would be removed: unlinking fails when all else is done.
        let aside = directory.join(NEXT).join(files::ROOT_CERTIFICATE);
        fs::remove_file(&aside).expect("removed");
        fs::create_dir(&aside).expect("a directory in the way");
        for _ in 0..2 {
            assert!(authority.switch().is_err());
            assert_eq!(key(directory.join(files::ROOT_KEY)), next_key);
            assert_eq!(key(retired_key(&directory, &former)), former_key);
        }
        fs::remove_dir(&aside).expect("out of the way");
        assert!(authority.switch().expect("switched"));
        assert!(authority.next.is_none() && !directory.join(NEXT).exists());
    }
}
