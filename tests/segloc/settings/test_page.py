from segloc.settings.page import PAGE, page


def test_the_settings_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m segloc.settings.page`"
