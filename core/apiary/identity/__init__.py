"""Who is who: the fleet's certificates, and messages sealed so that a broker can drop but not forge.

Pure: `roles` names the parts, `authority` issues certificates, `certificates` judges them, `signing` seals
and opens messages. Shells: `marks` keeps on disk what guards against repetition.
"""
