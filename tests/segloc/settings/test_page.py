from segloc.settings.page import PAGE, page


def test_the_page_of_settings_is_made_of_the_settings():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m segloc.settings.page`"
