"""The theme of the page: the report's colors for light and dark mode, and system fonts."""

import pathlib
import typing

import gradio as gr

CSS = pathlib.Path(__file__).with_name("style.css")
FONTS: dict[str, typing.Any] = {
    "font": ["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
    "font_mono": ["ui-monospace", "Menlo", "Consolas", "monospace"],
}


def theme() -> gr.themes.Base:
    """Return the theme. It uses system fonts, because Gradio's default fonts are downloaded."""
    both = {
        "body_background_fill": ("#f8f7f4", "#131312"),
        "body_text_color": ("#1d1c1a", "#ebe9e4"),
        "body_text_color_subdued": ("#65615a", "#a5a198"),
        "block_background_fill": ("#ffffff", "#1b1b19"),
        "background_fill_primary": ("#ffffff", "#1b1b19"),
        "background_fill_secondary": ("#f1efea", "#262623"),
        "input_background_fill": ("#ffffff", "#131312"),
        "border_color_primary": ("#e3dfd7", "#34332f"),
        "block_border_color": ("#e3dfd7", "#34332f"),
        "block_label_text_color": ("#65615a", "#a5a198"),
        "block_title_text_color": ("#65615a", "#a5a198"),
        "input_border_color": ("#d0cabf", "#45433e"),
        "input_placeholder_color": ("#78736b", "#8f8b83"),
        "link_text_color": ("#17599a", "#86bdee"),
        "slider_color": ("#17599a", "#86bdee"),
        "button_primary_background_fill": ("#17599a", "#2a6ca8"),
        "button_primary_background_fill_hover": ("#124a82", "#347ab9"),
        "button_secondary_background_fill": ("#f1efea", "#262623"),
        "button_secondary_background_fill_hover": ("#e7e3db", "#32312d"),
        "checkbox_background_color_selected": ("#17599a", "#2a6ca8"),
        "checkbox_border_color_selected": ("#17599a", "#2a6ca8"),
    }
    colors = {name: light for name, (light, _) in both.items()}
    colors |= {f"{name}_dark": dark for name, (_, dark) in both.items()}
    base = gr.themes.Default(primary_hue="blue", neutral_hue="stone", radius_size="md", **FONTS)
    return base.set(button_border_width="1px", **colors)
