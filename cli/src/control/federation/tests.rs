use baremesh_ca::authority::Authority;

use super::*;

fn config(federated: &[(&str, BundleSource)]) -> MeshConfig {
    let one = |(name, source): &(&str, BundleSource)| {
        let domain = TrustDomain::new(name).expect("a domain");
        Federated::new(domain, source.clone(), None).expect("a federation")
    };
    MeshConfig { federation: federated.iter().map(one).collect(), ..MeshConfig::default() }
}

fn file(path: &Path) -> BundleSource {
    BundleSource::file(&path.display().to_string()).expect("a source")
}

fn roots(place: &Path, name: &str) -> String {
    let domain = TrustDomain::new("partner.test").expect("a domain");
    let authority = Authority::create(place.join(name), &domain, SystemTime::now()).expect("an authority");
    chain_to_pem(&authority.roots())
}

/// Asks every source once.
async fn ask_all(federation: &Federation) -> Vec<String> {
    let mut work = JoinSet::new();
    federation.known().values_mut().for_each(|known| known.next = Instant::now());
    federation.begin_due(VirtualRanges::default(), &mut work);
    let mut taken = Vec::new();
    while let Some(done) = work.join_next().await {
        taken.extend(federation.take(done.expect("asked")));
    }
    taken
}

#[tokio::test]
async fn the_last_good_roots_stay_until_there_are_others_or_the_federation_is_taken_back() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("partner.pem");
    let (first, second) = (roots(place.path(), "first"), roots(place.path(), "second"));
    let config = config(&[("partner.test", file(&path))]);
    let federation = Federation::new(place.path(), Vec::new(), &config);
    assert!(ask_all(&federation).await.is_empty() && federation.statement().is_none());
    assert!(federation.warnings(SystemTime::now())[0].contains("nobody of it is taken"));
    fs::write(&path, &first).expect("written");
    assert!(ask_all(&federation).await[0].contains("take roots of partner.test from"));
    let told = |federation: &Federation| federation.statement().map(|told| told["partner.test"].clone());
    assert_eq!(told(&federation), Some(first.clone().into()));
    assert!(ask_all(&federation).await.is_empty() && federation.warnings(SystemTime::now()).is_empty());
    for bad in ["", "{\"keys\": []}", "root:x:0:0"] {
        fs::write(&path, bad).expect("written");
        assert!(ask_all(&federation).await.is_empty());
        assert_eq!(told(&federation), Some(first.clone().into()), "{bad}");
        let warnings = federation.warnings(SystemTime::now());
        assert!(
            warnings[0].contains("cannot be read anew") && !warnings[0].contains("root:x"),
            "{warnings:?}"
        );
    }
    // A restart finds them without their source.
    let again = Federation::new(place.path(), Vec::new(), &config);
    assert_eq!(told(&again), Some(first.into()));
    fs::write(&path, &second).expect("written");
    assert_eq!(ask_all(&again).await.len(), 1);
    assert_eq!(told(&again), Some(second.into()));
    again.reconcile(&MeshConfig::default());
    assert!(again.statement().is_none() && again.report().is_empty());
    let anew = Federation::new(place.path(), Vec::new(), &config);
    assert!(anew.statement().is_none(), "what was taken back is not kept");
}

#[tokio::test]
async fn what_is_asked_for_is_no_pipe_not_too_large_and_at_no_address_of_this_host() {
    let place = tempfile::tempdir().expect("a directory");
    let large = place.path().join("large.pem");
    fs::write(&large, " ".repeat(MAX_BODY + 1)).expect("written");
    let url = |text: &str| {
        let url = baremesh_model::request_authentication::KeyUrl::new(text).expect("a URL");
        BundleSource::url(url, None).expect("a source")
    };
    let all = [
        ("a.test", file(Path::new("/dev/zero")), "no file"),
        ("b.test", file(&large), "larger than"),
        ("c.test", file(&place.path().join("missing.pem")), "cannot be read"),
        ("d.test", url("https://127.0.0.1:1/bundle"), "--federation-allow"),
        ("e.test", url("https://169.254.169.254/latest"), "link-local"),
    ];
    let sources: Vec<_> = all.iter().map(|(name, source, _)| (*name, source.clone())).collect();
    let federation = Federation::new(place.path(), Vec::new(), &config(&sources));
    assert!(ask_all(&federation).await.is_empty());
    for ((name, _, reason), report) in all.iter().zip(federation.report()) {
        let failure = report.failure.unwrap_or_default();
        assert!(report.trust_domain == *name && failure.contains(reason), "{name}: {failure}");
    }
}

#[test]
fn roots_near_their_end_are_said_in_time() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("partner.pem");
    let text = roots(place.path(), "ca");
    let federation = Federation::new(place.path(), Vec::new(), &config(&[("partner.test", file(&path))]));
    let bundle = Bundle::read(&text, SystemTime::now()).expect("a bundle");
    let (end, life) = bundle.ends().expect("an end");
    federation.known().values_mut().for_each(|known| known.bundle = Some(bundle.clone()));
    for (at, expected) in [
        (end - life / 2, None),
        (end - life / 5, Some("ends in")),
        (end + Duration::from_secs(1), Some("have ended")),
    ] {
        let said = federation.warnings(at);
        assert_eq!(said.len(), usize::from(expected.is_some()), "{said:?}");
        assert!(expected.is_none_or(|part| said[0].contains(part)), "{said:?}");
    }
}
