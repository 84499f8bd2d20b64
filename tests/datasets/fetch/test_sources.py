"""The table of sources."""

from datasets.catalogue import SPECS
from datasets.fetch.sources import SOURCES, file_name
from datasets.fetch.transfer import DIGESTS, check_url


def test_every_set_that_is_no_folder_of_ones_own_has_a_source():
    assert set(SPECS) == set(SOURCES)


def test_the_table_is_sound():
    for name, source in SOURCES.items():
        assert bool(source.archives) + bool(source.register) == (name != "streets"), name
        assert bool(source.register) == bool(source.files) == bool(source.layout), name
        for archive in source.archives:
            check_url(archive.url)
            assert not archive.digest or len(archive.digest) in DIGESTS
            assert int(archive.digest or "0", 16) >= 0
        assert len({archive.name for archive in source.archives}) == len(source.archives)


def test_a_files_name_out_of_an_address():
    names = {
        "http://a/b/c.zip?x=1": "c.zip", "http://a/": "archive", "http://a": "archive", "http://a/b/": "b",
        "http://a/..": "archive", "http://a/%2e%2e%2fx": "x", "http://a/a%20b;c.tar.gz": "a_b_c.tar.gz",
    }  # fmt: skip
    assert {url: file_name(url) for url in names} == names
