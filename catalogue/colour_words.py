"""Colours by name, in English and in Chinese: what sellers call them.

The English names are those of public fashion feeds. Used to give products labels in either language (training noise,
the generated product set), to know 黑色 and Black in a feed for one colour, and to tell a design from its colours;
nothing looks here when a label is matched, free text is the model's own business.
"""

from __future__ import annotations

from collections.abc import Mapping

CHINESE: Mapping[str, tuple[str, ...]] = {
    "Beige": ("米色", "杏色", "米黄色"),
    "Black": ("黑色", "纯黑色", "曜石黑", "炭黑"),
    "Blue": ("蓝色", "宝蓝色", "纯蓝色"),
    "Bronze": ("古铜色", "青铜色"),
    "Brown": ("棕色", "褐色", "咖色"),
    "Burgundy": ("酒红色", "勃艮第红"),
    "Charcoal": ("炭灰色", "深灰色"),
    "Coffee Brown": ("咖啡色", "深咖色"),
    "Copper": ("铜色", "紫铜色"),
    "Cream": ("奶油色", "奶白色"),
    "Fluorescent Green": ("荧光绿", "荧光绿色"),
    "Gold": ("金色", "香槟金"),
    "Green": ("绿色", "草绿色", "墨绿色"),
    "Grey": ("灰色", "浅灰色", "中灰"),
    "Grey Melange": ("麻灰色", "花灰色"),
    "Khaki": ("卡其色", "卡其"),
    "Lavender": ("薰衣草紫", "浅紫色"),
    "Lime Green": ("柠檬绿", "青柠色"),
    "Magenta": ("洋红色", "玫紫色"),
    "Maroon": ("栗红色", "枣红色"),
    "Mauve": ("淡紫色", "藕紫色"),
    "Metallic": ("金属色",),
    "Multi": ("多色", "花色", "彩色", "拼色"),
    "Mushroom Brown": ("蘑菇棕", "蘑菇色"),
    "Mustard": ("芥末黄", "姜黄色"),
    "Navy Blue": ("藏青色", "深蓝色", "海军蓝"),
    "Nude": ("裸色", "裸粉色"),
    "Off White": ("米白色", "本白色"),
    "Olive": ("橄榄绿", "军绿色", "橄榄色"),
    "Orange": ("橙色", "橘色", "橘红色"),
    "Peach": ("桃色", "蜜桃色"),
    "Pink": ("粉色", "粉红色", "樱花粉"),
    "Purple": ("紫色", "深紫色"),
    "Red": ("红色", "大红色", "中国红"),
    "Rose": ("玫瑰色", "玫红色"),
    "Rust": ("铁锈色", "砖红色"),
    "Sea Green": ("海绿色", "碧绿色"),
    "Silver": ("银色", "银灰色"),
    "Skin": ("肤色", "肉色"),
    "Steel": ("钢色", "不锈钢色"),
    "Tan": ("棕褐色", "驼色"),
    "Taupe": ("灰褐色", "烟灰褐"),
    "Teal": ("青色", "蓝绿色", "水鸭色"),
    "Turquoise Blue": ("松石蓝", "湖蓝色"),
    "White": ("白色", "纯白色", "雪白色"),
    "Yellow": ("黄色", "明黄色", "柠檬黄"),
}
"""Chinese wordings of a colour, the plain one first."""

_NAME_OF = {wordings[0]: name for name, wordings in CHINESE.items()}

ENGLISH: Mapping[str, tuple[str, ...]] = {
    "Charcoal": ("Charcoal Grey", "Dark Grey"),
    "Coffee Brown": ("Coffee", "Dark Brown"),
    "Fluorescent Green": ("Neon Green",),
    "Grey": ("Gray",),
    "Grey Melange": ("Grey Marl", "Heather Grey"),
    "Maroon": ("Dark Red",),
    "Multi": ("Multicolour", "Multicolor", "Assorted"),
    "Navy Blue": ("Navy", "Dark Blue"),
    "Off White": ("Offwhite", "Ivory"),
    "Turquoise Blue": ("Turquoise",),
}
"""Other English wordings of a colour, where there are any."""


COLOUR_WORDS = frozenset(
    {*CHINESE, *(word for table in (CHINESE, ENGLISH) for words in table.values() for word in words)}
)
"""Every word for a colour, in either language."""


def colour_name(word: str) -> str:
    """The English name of a colour given by its plain Chinese word; any other word is its own name."""
    return _NAME_OF.get(word, word)
