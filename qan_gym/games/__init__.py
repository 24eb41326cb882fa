"""The games: what an action is and what it changes in a training run. One file is one game.

Every module in this folder is imported here, and registers its game.
"""

from importlib import import_module
from pkgutil import iter_modules

from qan_gym.games.game import GAMES, Game, game_of, register_game

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = ["GAMES", "Game", "game_of", "register_game"]
