//! Golden files: what is written beside what is said about it. `UPDATE_GOLDEN=1` writes the expectations anew.

use std::fs;
use std::path::Path;

use annotate_snippets::Renderer;
use baremesh_registry::diagnostic::render_all;
use baremesh_registry::format::Form;

#[test]
fn every_golden_file_says_what_stands_beside_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut checked = 0;
    for entry in fs::read_dir(&folder).expect("the golden folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(form) = Form::of_file(&name) else { continue };
        let parsed = form.parse(&fs::read_to_string(&path).expect("a golden file"), &name);
        let mut said = render_all(&parsed.findings, &Renderer::plain());
        said.push_str("\naccepted:\n");
        for resource in &parsed.resources {
            said.push_str(&format!("  {} ({})\n", resource.value.id(), resource.origin.place()));
        }
        let expected = folder.join(format!("{name}.expected"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &said).expect("the expectation can be written");
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert!(said == expected, "{name}: run with UPDATE_GOLDEN=1 and look at the difference:\n{said}");
        checked += 1;
    }
    assert!(checked >= 10, "only {checked} golden files were found");
}
