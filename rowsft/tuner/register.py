"""How PEFT comes to know the method ``ROW_SFT``: one enum member and one registration.

peft has no public entry point for methods of other packages: `register_peft_method` is public, but it asks for a member
of the `PeftType` enum. Everything that leans on that private fact is in this file.
"""

NAME = "ROW_SFT"
PREFIX = "row_sft_"


def register(config_cls: type, model_cls: type) -> None:
    """Add the enum member and register the classes with peft. Calling it again changes nothing.

    Args:
        config_cls: subclass of `peft.PeftConfig`.
        model_cls: subclass of `peft.tuners.tuners_utils.BaseTuner` whose `prefix` is ``row_sft_``.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import PeftType, register_peft_method

    if NAME not in PeftType.__members__:
        member = str.__new__(PeftType, NAME)
        member._name_ = NAME
        member._value_ = NAME
        member._sort_order_ = len(PeftType)
        PeftType._member_names_.append(NAME)
        PeftType._member_map_[NAME] = member
        PeftType._value2member_map_[NAME] = member
        type.__setattr__(PeftType, NAME, member)
    if PeftType(NAME) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls, prefix=PREFIX)
